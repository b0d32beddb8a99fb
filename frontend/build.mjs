// Builds the committed assets: src/ -> ../src/uno/core/monitoring/dashboard/static/, under stable names.
import { copyFileSync, mkdirSync, readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { fileURLToPath } from "node:url";
import { context } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const out = `${here}../src/uno/core/monitoring/dashboard/static/`;
const LIMIT = 60 * 1024; // bytes, gzipped, everything together

const report = {
  name: "report",
  setup(build) {
    build.onEnd((result) => {
      if (result.errors.length) return;
      copyFileSync(`${here}src/index.html`, `${out}index.html`);
      let total = 0;
      for (const name of ["index.html", "app.css", "app.js"]) {
        const size = gzipSync(readFileSync(out + name), { level: 9 }).length;
        total += size;
        console.log(`${name.padEnd(12)}${(size / 1024).toFixed(1).padStart(6)} KiB gzipped`);
      }
      console.log(`${"together".padEnd(12)}${(total / 1024).toFixed(1).padStart(6)} KiB of ${LIMIT / 1024}`);
      if (total > LIMIT) process.exitCode = 1;
    });
  },
};

mkdirSync(out, { recursive: true });
const build = await context({
  absWorkingDir: here,
  entryPoints: { app: "src/main.tsx" },
  outdir: out,
  bundle: true,
  minify: true,
  format: "iife",
  target: ["es2022", "chrome123", "firefox121", "safari17.5"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  charset: "utf8",
  plugins: [report],
});
if (process.argv.includes("--watch")) {
  await build.watch();
} else {
  await build.rebuild();
  await build.dispose();
}
