// A list of bookmarks: JSON for programs, a page for people.
import express from "express";

const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

function checked({ url, title } = {}) {
  const { protocol, href } = new URL(url);
  if (protocol !== "http:" && protocol !== "https:") throw new TypeError(`${protocol} is not a web address`);
  return { url: href, title: String(title || href).slice(0, 200) };
}

export function createApp() {
  const bookmarks = new Map();
  let next = 1;
  const app = express();
  app.disable("x-powered-by");
  app.use(express.json({ limit: "16kb" }));

  app.get("/", (request, response) => {
    const items = [...bookmarks.values()].map(({ url, title }) => `<li><a href="${escape(url)}">${escape(title)}</a></li>`);
    response.type("html").send(`<!doctype html><title>Bookmarks</title><h1>Bookmarks</h1><ul>${items.join("")}</ul>`);
  });

  app.get("/bookmarks", (request, response) => response.json([...bookmarks.values()]));

  app.post("/bookmarks", (request, response) => {
    const bookmark = { id: next++, ...checked(request.body) };
    bookmarks.set(bookmark.id, bookmark);
    response.status(201).location(`/bookmarks/${bookmark.id}`).json(bookmark);
  });

  app.delete("/bookmarks/:id", (request, response) => {
    response.sendStatus(bookmarks.delete(Number(request.params.id)) ? 204 : 404);
  });

  app.use((error, request, response, next) => {
    const status = error instanceof TypeError ? 400 : (error.status ?? 500);
    response.status(status).json({ error: status === 500 ? "internal error" : error.message });
  });

  return app;
}
