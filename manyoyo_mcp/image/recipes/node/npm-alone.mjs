// Takes npm, and what the package.json files say that it needs, out of the unpacked packages below ROOT.
//
// Debian's npm package depends on some 350 others, most of them tools that test or bundle; npm itself runs without those.
import { cpSync, existsSync, mkdirSync, readFileSync, realpathSync } from "node:fs";
import { dirname, join, relative } from "node:path";

const [root, target] = process.argv.slice(2);
const modules = join(root, "usr/share/nodejs");
const needed = new Set();

function find(name, from) {
  for (let at = from; at.startsWith(modules); at = dirname(at)) {
    const nested = join(at, "node_modules", name);
    if (existsSync(nested)) return nested;
  }
  const shared = join(modules, name);
  return existsSync(shared) ? shared : undefined; // what Debian left out, npm was patched to do without
}

function need(directory) {
  const real = realpathSync(directory);
  if (needed.has(real)) return;
  needed.add(real);
  const { dependencies = {} } = JSON.parse(readFileSync(join(real, "package.json"), "utf8"));
  for (const name of Object.keys(dependencies)) {
    const found = find(name, real);
    if (found) need(found);
  }
}

need(join(modules, "npm"));
for (const path of [...needed, join(modules, "@npmcli/node_modules"), join(root, "usr/bin/npm"), join(root, "usr/bin/npx")]) {
  const copy = join(target, relative(root, path));
  mkdirSync(dirname(copy), { recursive: true });
  cpSync(path, copy, { recursive: true, verbatimSymlinks: true, dereference: false });
}
