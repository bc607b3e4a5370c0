// @modelcontextprotocol/client 2.x: asks for the newest protocol, falls back to the handshake.
import { Client } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { identity, job, server } from "./sdk_job.mjs";

const client = new Client(identity, { versionNegotiation: { mode: "auto" } });
await client.connect(new StdioClientTransport(server));
await job(client.getNegotiatedProtocolVersion(), client, (call, options) => client.callTool(call, options));
