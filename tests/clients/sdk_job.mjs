// What both SDK scripts do with a connected client: list, ask, build from files, run with progress, be refused, clean up.
// The answers go to stdout as one JSON object; test_typescript_sdks.py judges them.
import { readFileSync } from "node:fs";

export async function job(protocolVersion, client, callTool) {
  const said = [];
  const onprogress = (progress) => said.push(progress);
  const { tools } = await client.listTools();
  const before = await callTool({ name: "sandbox_status", arguments: {} });
  const built = await callTool(
    {
      name: "nested_build",
      arguments: {
        files: { Dockerfile: readFileSync("Dockerfile", "utf8"), "root.tar": { base64: readFileSync("root.tar", "base64") } },
        tags: [process.env.IMAGE],
      },
    },
    { onprogress },
  );
  const steps = said.splice(0);
  const ran = await callTool(
    { name: "nested_run", arguments: { image: process.env.IMAGE, command: ["sh", "-c", "sleep 3; echo slept"] } },
    { onprogress },
  );
  const refused = await callTool({ name: "nested_run", arguments: { image: process.env.IMAGE, command: ["true"], memory: "lots" } });
  const cleaned = await callTool({ name: "cleanup", arguments: {} });
  await client.close();
  const names = tools.map((tool) => tool.name);
  console.log(JSON.stringify({ protocolVersion, names, before, built, steps, ran, ticks: said, refused, cleaned }));
}

export const server = { command: process.env.SERVER, args: ["serve"], env: process.env };
export const identity = { name: "manyoyo-test", version: "1.0.0" };
