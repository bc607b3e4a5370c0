import { createApp } from "./bookmarks.js";

const server = createApp().listen(Number(process.env.PORT ?? 8000), () => {
  console.log(`listening on ${server.address().port}`);
});
process.on("SIGTERM", () => server.close());
