// @modelcontextprotocol/sdk 1.x: the handshake protocol.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { identity, job, server } from "./sdk_job.mjs";

const transport = new StdioClientTransport(server);
let version;
transport.setProtocolVersion = (negotiated) => (version = negotiated);
const client = new Client(identity);
await client.connect(transport);
await job(version, client, (call, options) => client.callTool(call, undefined, options));
