"""A paste bin: text goes in over HTTP, a short name comes back, and the text stays until it expires."""

import os
import secrets
import sqlite3
import time

from flask import Flask, Response, abort, g, jsonify, request, url_for

MAX_BYTES = 64 << 10
KEEP_SECONDS = 24 * 60 * 60


def create_app(database: str | None = None) -> Flask:
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BYTES
    path = database or os.environ.get("PASTES_DB", "/tmp/pastes.sqlite")

    def db() -> sqlite3.Connection:
        if "db" not in g:
            g.db = sqlite3.connect(path)
            g.db.execute("CREATE TABLE IF NOT EXISTS pastes (name TEXT PRIMARY KEY, text TEXT, expires REAL)")
        return g.db

    @app.teardown_appcontext
    def close(_: BaseException | None) -> None:
        if "db" in g:
            g.pop("db").close()

    @app.get("/healthz")
    def health() -> str:
        return "ok"

    @app.post("/pastes")
    def create() -> tuple[Response, int]:
        text = request.get_data(as_text=True)
        if not text.strip():
            abort(400, "the paste is empty")
        name = secrets.token_urlsafe(6)
        with db() as connection:
            connection.execute("DELETE FROM pastes WHERE expires < ?", (time.time(),))
            connection.execute("INSERT INTO pastes VALUES (?, ?, ?)", (name, text, time.time() + KEEP_SECONDS))
        return jsonify(name=name, url=url_for("read", name=name)), 201

    @app.get("/pastes/<name>")
    def read(name: str) -> Response:
        row = db().execute("SELECT text FROM pastes WHERE name = ? AND expires >= ?", (name, time.time())).fetchone()
        if row is None:
            abort(404, "no such paste, or it has expired")
        return Response(row[0], mimetype="text/plain")

    return app
