from manyoyo_mcp.cli.main import main

main()
