// What depends on what? The server's drawing, made of safe parts only; the same edges as a table.
import type { JSX } from "preact";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { signal } from "@preact/signals";
import { get } from "./api";
import { DASH, quantity } from "./format";
import { paused } from "./live";
import { route, setQuery } from "./route";
import { models } from "./store";
import { Empty, LEVEL_WORD, LevelTag, ResourceLink } from "./ui";
import type { Graph, Level } from "./types";

// The shapes of the server's drawing.
const GLYPHS: [Level, string][] = [
  ["ok", "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z"], ["warning", "M0-6L6 5H-6z"], ["critical", "M-5-5H5V5H-5z"], ["unknown", "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z"],
];
const REFRESH = 3000; // ms
const SVG = "http://www.w3.org/2000/svg";
const ELEMENTS = new Set(["svg", "g", "a", "title", "desc", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text", "tspan"]);
const ATTRIBUTES = new Set(("class d x y x1 y1 x2 y2 cx cy r rx ry width height viewBox points transform fill fill-opacity stroke stroke-width "
  + "stroke-opacity stroke-dasharray stroke-linecap stroke-linejoin opacity text-anchor dominant-baseline dx dy font-size font-weight font-family role aria-label aria-hidden").split(" "));

declare global {
  interface Window { trustedTypes?: { createPolicy(name: string, rules: { createHTML(text: string): string }): { createHTML(text: string): string } } }
}
const policy = window.trustedTypes?.createPolicy("uno-map", { createHTML: (text) => text });

/** A copy made of known elements and attributes alone; the parsed text itself never enters the page. */
function copy(from: Element): SVGElement | null {
  const name = from.localName;
  if (!ELEMENTS.has(name) || from.namespaceURI !== SVG) return null;
  const to = document.createElementNS(SVG, name) as SVGElement;
  for (const { name: key, value } of from.attributes) {
    if (ATTRIBUTES.has(key) || (key === "href" && name === "a" && value.startsWith("#/"))) to.setAttribute(key, value);
  }
  for (const child of from.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) to.append(child.textContent ?? "");
    else if (child.nodeType === Node.ELEMENT_NODE) { const made = copy(child as Element); if (made) to.append(made); }
  }
  return to;
}

function draw(text: string): SVGElement | null {
  const html = policy ? policy.createHTML(text) : text;
  const parsed = new DOMParser().parseFromString(html as string, "image/svg+xml").documentElement;
  return parsed.localName === "svg" ? copy(parsed) : null;
}

function Picture({ svg }: { svg: string }): JSX.Element {
  const host = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const box = host.current!;
    const focused = box.contains(document.activeElement) ? document.activeElement!.getAttribute("href") : null;
    const made = draw(svg);
    const { scrollLeft, scrollTop } = box;
    box.replaceChildren(...(made ? [made] : []));
    if (made) {
      // Full size on a wide screen, never so small that the text cannot be read.
      const width = Number(made.getAttribute("viewBox")?.split(/\s+/)[2] ?? made.getAttribute("width") ?? 0);
      if (width) { made.removeAttribute("height"); made.style.width = "100%"; made.style.maxWidth = `${width}px`; made.style.minWidth = `${0.8 * width}px`; }
    }
    box.scrollLeft = scrollLeft; box.scrollTop = scrollTop;
    if (focused) for (const a of box.querySelectorAll("a")) if (a.getAttribute("href") === focused) a.focus();
  }, [svg]);
  return <div ref={host} class="picture scroll" tabIndex={0} role="region" aria-label="Dependency map" />;
}

export function MapPage(): JSX.Element {
  const state = useMemo(() => ({ graph: signal<Graph | null>(null), failed: signal("") }), []);
  useEffect(() => {
    let busy = false;
    const load = (): void => {
      if (busy || document.hidden || paused.peek()) return;
      busy = true;
      get<Graph>("graph").then((g) => { state.graph.value = g; state.failed.value = ""; })
        .catch((e: unknown) => { state.failed.value = e instanceof Error ? e.message : "No answer."; })
        .finally(() => { busy = false; });
    };
    load();
    const timer = window.setInterval(load, REFRESH);
    return () => clearInterval(timer);
  }, []);
  const graph = state.graph.value;
  const table = route.value.query.get("table") === "1";
  return (
    <>
      <div class="bar-row">
        <h1>Map</h1>
        <ul class="key">
          {GLYPHS.map(([level, d]) => <li key={level} class={`level--${level}`}><svg viewBox="-8 -8 16 16" width="14" height="14" aria-hidden="true"><path class="node__glyph" d={d} fill="none" /></svg>{LEVEL_WORD[level]}</li>)}
          <li><i class="edge-key" />observed</li><li><i class="edge-key dashed" />declared</li>
        </ul>
        <button type="button" class="ghost" aria-pressed={table} onClick={() => setQuery("table", table ? "" : "1")}>Show as table</button>
      </div>
      {!graph && (state.failed.value ? <Empty title={state.failed.value} /> : <div class="wait tall" />)}
      {graph && graph.nodes.length === 0 && <Empty title="No dependencies are known yet"><p>They are drawn as soon as a route uses a resource, or one is declared with <code>depends_on=</code>.</p></Empty>}
      {graph && graph.nodes.length > 0 && (table ? <Edges graph={graph} /> : <Picture svg={graph.svg} />)}
    </>
  );
}

function Edges({ graph }: { graph: Graph }): JSX.Element {
  const by = new Map(graph.nodes.map((n) => [n.id, n]));
  const end = (id: string): JSX.Element => models.has(id) ? <ResourceLink id={id} /> : <span>{by.get(id)?.name || id}</span>;
  const rows = [...graph.edges].sort((a, b) => (b.rate ?? -1) - (a.rate ?? -1));
  const joined = new Set(graph.edges.flatMap((e) => [e.source, e.target]));
  const alone = graph.nodes.filter((n) => !joined.has(n.id));
  return (
    <>
      <div class="scroll panel" tabIndex={0} role="region" aria-label="Dependencies, table"><table>
        <thead><tr><th scope="col">From</th><th scope="col">To</th><th scope="col">Level</th><th scope="col">Seen</th><th scope="col" class="r">Rate</th><th scope="col" class="r">Time each</th><th scope="col" class="r">Calls</th><th scope="col" class="r">Errors</th></tr></thead>
        <tbody>{rows.map((e) => <tr key={`${e.source}|${e.target}|${e.kind}`}>
          <td>{end(e.source)}</td><td>{end(e.target)}</td><td><LevelTag level={by.get(e.target)?.level ?? "unknown"} /></td>
          <td>{e.kind}</td><td class="r num">{e.rate == null ? DASH : quantity(e.rate, "", true)}</td>
          <td class="r num">{e.latency == null ? DASH : quantity(e.latency, "s")}</td>
          <td class="r num">{e.calls.toLocaleString("en-US")}</td><td class="r num">{e.errors.toLocaleString("en-US")}</td>
        </tr>)}</tbody>
      </table></div>
      {alone.length > 0 && <p class="quiet">Without edges: {alone.map((n, i) => <>{i > 0 && ", "}{end(n.id)}</>)}</p>}
    </>
  );
}
