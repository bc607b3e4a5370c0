import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { createApp } from "./bookmarks.js";

let server, base;
before(async () => {
  await new Promise((listening) => (server = createApp().listen(0, "127.0.0.1", listening)));
  base = `http://127.0.0.1:${server.address().port}`;
});
after(() => server.close());

const post = (body) =>
  fetch(`${base}/bookmarks`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

test("a bookmark is kept, listed and removed", async () => {
  const made = await post({ url: "https://example.org/a", title: "A" });
  assert.equal(made.status, 201);
  const { id } = await made.json();
  const list = await (await fetch(`${base}/bookmarks`)).json();
  assert.deepEqual(list.find((each) => each.id === id), { id, url: "https://example.org/a", title: "A" });
  assert.equal((await fetch(`${base}/bookmarks/${id}`, { method: "DELETE" })).status, 204);
  assert.equal((await fetch(`${base}/bookmarks/${id}`, { method: "DELETE" })).status, 404);
});

test("what is no web address is refused", async () => {
  for (const url of [undefined, "", "nonsense", "javascript:alert(1)", "file:///etc/passwd"]) {
    assert.equal((await post({ url })).status, 400, String(url));
  }
});

test("a title can't break out of the page", async () => {
  await post({ url: "https://example.org/", title: "<script>alert(1)</script>" });
  const page = await (await fetch(base)).text();
  assert.ok(!page.includes("<script>"));
  assert.ok(page.includes("&#60;script&#62;"));
});

test("a body that is no JSON is refused", async () => {
  const answer = await fetch(`${base}/bookmarks`, { method: "POST", headers: { "content-type": "application/json" }, body: "{" });
  assert.equal(answer.status, 400);
});
