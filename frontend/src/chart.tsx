// How did a metric go? One uPlot chart per metric with its levels; the same figures as a table.
import type { JSX } from "preact";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { signal, useSignalEffect, type ReadonlySignal } from "@preact/signals";
import uPlot from "uplot";
import { get } from "./api";
import { clock, duration, exact, labelText, quantity } from "./format";
import { link, paused } from "./live";
import { now } from "./store";
import { colour, paint } from "./theme";
import type { Detail, Metric, SeriesData } from "./types";

const HEIGHT = 168;
const POINTS = 600;
const LINES = 12; // drawn at most; the table has them all
const ROWS = 40;

const inkOf = (i: number): string => `--s${(i % 6) + 1}`;
const dashOf = (i: number): number[] => (i < 6 ? [] : [6, 3]);

const WHOLE = Array.from({ length: 16 }, (_, e) => [1, 2, 5].map((m) => m * 10 ** e)).flat(); // half a connection is no tick

type Columns = [number[], ...(number | null)[][]];

const isRate = (kind: string, stat: string): boolean => stat === "rate" || (kind === "counter" && stat !== "total");
const unitOf = (data: SeriesData, stat: string): string => (data.kind === "histogram" && (stat === "rate" || stat === "count") ? "" : data.unit);
const say = (data: SeriesData, line: SeriesData["series"][number], v: number | null | undefined): string =>
  exact(v, unitOf(data, line.stat), isRate(data.kind, line.stat));

/** What tells a line from the others: the values of the labels in which they differ. */
function nameOf(data: SeriesData, i: number): string {
  const line = data.series[i]!;
  const names = Object.keys(line.labels);
  const differ = names.filter((name) => data.series.some((s) => s.labels[name] !== line.labels[name]));
  const labels = (differ.length ? differ : names).map((name) => line.labels[name]).join(" ");
  const stats = new Set(data.series.map((s) => s.stat)).size > 1 || data.kind === "histogram";
  return [labels, stats && line.stat].filter(Boolean).join(" · ") || data.title;
}

function timeTicks(u: uPlot, splits: number[], __: number, ___: number, step: number): string[] {
  return splits.map((t) => {
    const x = u.valToPos(t, "x");
    if (x < 20 || x > u.width - 62 - 6 - 24) return ""; // it would be cut off, or stand in the other axis
    const d = new Date(t * 1000);
    const two = (n: number): string => String(n).padStart(2, "0");
    if (step >= 86400 || (step >= 3600 && d.getHours() === 0 && d.getMinutes() === 0)) return `${two(d.getDate())}.${two(d.getMonth() + 1)}.`;
    return step < 60 ? `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}` : `${two(d.getHours())}:${two(d.getMinutes())}`;
  });
}

/** A value between two gaps has no line to either side: it is drawn as a point. */
function alone(u: uPlot, series: number): number[] {
  const values = u.data[series]!;
  const found: number[] = [];
  for (let i = 0; i < values.length; i++) if (values[i] != null && values[i - 1] == null && values[i + 1] == null) found.push(i);
  return found;
}

/** Warning and critical lines, dashed and named, so that a level is not told by colour alone. */
function levelLines(data: SeriesData): (u: uPlot) => void {
  return (u) => {
    const { ctx } = u;
    const ratio = devicePixelRatio;
    for (const [level, at] of [["warning", data.warning], ["critical", data.critical]] as const) {
      if (at == null) continue;
      const y = Math.round(u.valToPos(at, "y", true)) + 0.5;
      if (y < u.bbox.top - 1 || y > u.bbox.top + u.bbox.height + 1) continue;
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = colour(`--${level}`);
      ctx.lineWidth = ratio;
      ctx.setLineDash(level === "critical" ? [6 * ratio, 3 * ratio] : [2 * ratio, 3 * ratio]);
      ctx.beginPath();
      ctx.moveTo(u.bbox.left, y);
      ctx.lineTo(u.bbox.left + u.bbox.width, y);
      ctx.stroke();
      ctx.font = `${10.5 * ratio}px system-ui, sans-serif`;
      ctx.textAlign = "left"; // the present, on the right, stays free
      ctx.textBaseline = y - u.bbox.top < 16 * ratio ? "top" : "bottom";
      const text = `${level} ${quantity(at, data.unit)}`, left = u.bbox.left + 6 * ratio;
      const below = ctx.textBaseline === "top", width = ctx.measureText(text).width;
      const ink = ctx.fillStyle;
      ctx.fillStyle = colour("--surface");
      ctx.globalAlpha = 0.8;
      ctx.fillRect(left - 3 * ratio, y + (below ? 1 : -14) * ratio, width + 6 * ratio, 13 * ratio);
      ctx.globalAlpha = 1;
      ctx.fillStyle = ink;
      ctx.fillText(text, left, y + (below ? 3 : -2) * ratio);
      ctx.restore();
    }
  };
}

function yRange(data: SeriesData): (u: uPlot, low: number | null, high: number | null) => [number, number] {
  return (_, low, high) => {
    let a = Math.min(0, low ?? 0), b = high ?? 0;
    for (const t of [data.warning, data.critical]) if (t != null && (data.unit === "1" || t <= b * 3)) b = Math.max(b, t);
    if (data.unit === "1" && data.kind === "gauge" && b > 0.25 && b <= 1) return [a, 1.12];
    // Memory and the like move little on a large base: show the movement.
    if (low != null && high != null && low > 0 && high < low * 1.25 && data.warning == null && data.critical == null && data.unit === "By") {
      const pad = Math.max((high - low) * 0.2, high * 0.005);
      return [low - pad, high + pad];
    }
    if (b <= a) b = a + (data.unit === "1" ? 0.1 : 1);
    if (a < 0) a *= 1.08;
    return [a, b * 1.08];
  };
}

export function Chart({ id, metric, range, table, detail }: {
  id: string; metric: Metric; range: number; table: boolean; detail: ReadonlySignal<Detail | null>;
}): JSX.Element {
  const root = useRef<HTMLElement>(null);
  const host = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const state = useMemo(() => ({ seen: signal(false), data: signal<SeriesData | null>(null), failed: signal(""), at: signal<number | null>(null), drawn: signal(0), again: signal(0) }), []);
  const columns = useRef<Columns>([[]]);

  useEffect(() => {
    const watch = new IntersectionObserver((e) => { if (e.some((x) => x.isIntersecting)) { state.seen.value = true; watch.disconnect(); } }, { rootMargin: "200px" });
    watch.observe(root.current!);
    return () => watch.disconnect();
  }, []);

  // The past, from the server: at first, on another range, and now and then, since what is appended live is a sample.
  const seen = state.seen.value, round = state.again.value;
  useEffect(() => {
    if (!seen) return;
    const stop = new AbortController();
    const end = now.peek();
    get<SeriesData>("series", { resource: id, metric: metric.name, start: end - range, end, points: POINTS }, stop.signal).then((data) => {
      columns.current = [data.times, ...data.series.map((s) => s.values)];
      state.failed.value = "";
      state.data.value = data;
      state.drawn.value += 1;
    }).catch((error: unknown) => { if (!stop.signal.aborted) state.failed.value = error instanceof Error ? error.message : "No answer."; });
    const timer = window.setTimeout(() => { if (!paused.peek()) state.again.value += 1; }, Math.max(60_000, (range * 5000) / POINTS));
    return () => { stop.abort(); clearTimeout(timer); };
  }, [id, metric.name, range, seen, round]);

  // After a lost connection, what failed is asked for again.
  useSignalEffect(() => { if (link.value === "live" && state.failed.peek()) state.again.value = state.again.peek() + 1; });

  // The present, from the resource's own refresh.
  useSignalEffect(() => {
    const fresh = detail.value;
    const data = state.data.peek();
    if (!fresh || !data) return;
    const [times] = columns.current;
    const t = now.peek();
    const last = times[times.length - 1];
    if (last !== undefined && t < last + Math.max(0.5, (range / POINTS) * 0.95)) return;
    if (last !== undefined && t > last + Math.max(10, (range / POINTS) * 3)) { state.again.value = state.again.peek() + 1; return; } // was away
    const series = fresh.metrics.find((m) => m.name === metric.name)?.series ?? [];
    const by = new Map(series.map((s) => [labelText(s.labels), s.stats]));
    times.push(t);
    data.series.forEach((line, i) => { (columns.current[i + 1] as (number | null)[]).push(by.get(labelText(line.labels))?.[line.stat] ?? null); });
    while (times.length && times[0]! < t - range) for (const column of columns.current) column.shift();
    state.drawn.value += 1;
  });

  const data = state.data.value;
  const shown = data ? Math.min(data.series.length, LINES) : 0;
  const form = data && !table ? data.series.map((s) => labelText(s.labels) + s.stat).join("|") + data.warning + data.critical : "";

  useEffect(() => {
    if (!form || !host.current) return;
    const d = state.data.peek()!;
    const whole = d.kind === "gauge" && d.unit.startsWith("{");
    let chart: uPlot | null = null;
    const build = (): void => {
      chart?.destroy();
      const faint = colour("--line"), text = colour("--muted");
      const axis = { stroke: text, grid: { stroke: faint, width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
      chart = plot.current = new uPlot({
        width: host.current!.clientWidth || 300,
        height: HEIGHT,
        legend: { show: false },
        padding: [8, 6, 0, 0],
        cursor: { y: false, points: { size: 6 }, drag: { setScale: false, x: false, y: false } },
        scales: {
          x: { range: () => { const t = columns.current[0] as number[]; const end = now.peek(); return [Math.max(end - range, Math.min((t[0] as number | undefined) ?? end - range, end - 60)), end]; } },
          y: { range: yRange(d) },
        },
        axes: [
          { ...axis, grid: { show: false }, values: timeTicks, space: 70, size: 26 },
          { ...axis, ...(whole ? { incrs: WHOLE } : {}), size: 62, space: 34, values: (_, splits) => splits.map((v) => say(d, d.series[0]!, v)) },
        ],
        series: [{}, ...d.series.slice(0, shown).map((_, i) => ({
          label: nameOf(d, i), stroke: colour(inkOf(i)), width: 1.5, dash: dashOf(i), points: { show: false, size: 4, filter: alone }, spanGaps: false,
          ...(shown === 1 ? { fill: colour("--s1-area") } : {}),
        }))],
        hooks: { draw: [levelLines(d)], setCursor: [(u) => { state.at.value = u.cursor.idx ?? null; }] },
      }, columns.current.slice(0, shown + 1) as uPlot.AlignedData, host.current!);
    };
    const unpaint = paint.subscribe(build);
    const size = new ResizeObserver(() => { const w = host.current?.clientWidth; if (w && chart && w !== chart.width) chart.setSize({ width: w, height: HEIGHT }); });
    size.observe(host.current);
    return () => { unpaint(); size.disconnect(); chart?.destroy(); plot.current = null; };
  }, [form, range]);

  useSignalEffect(() => {
    state.drawn.value;
    const chart = plot.current;
    if (chart) chart.setData(columns.current.slice(0, chart.series.length) as uPlot.AlignedData);
  });

  const at = state.at.value;
  state.drawn.value;
  const times = columns.current[0];
  const index = at ?? times.length - 1;
  const summary = data ? describe(data, columns.current) : "";
  return (
    <section ref={root} class="chart" aria-label={metric.title}>
      <h3 title={[metric.name, ...metric.short].join(", ")}>{metric.title}
        {data && data.series.length === 1 && <b class="num">{say(data, data.series[0]!, columns.current[1]?.[index])}</b>}
        {at != null && times[at] !== undefined && <span class="when num">{clock(times[at])}</span>}
      </h3>
      {metric.description && metric.description !== metric.title && <p class="about">{metric.description}</p>}
      {state.failed.value && <p class="failed">{state.failed.value}</p>}
      {!data && !state.failed.value && <div class="wait" />}
      {data && data.series.length === 0 && <p class="failed">No values in this range.</p>}
      {data && table && <Table data={data} columns={columns.current} />}
      {data && !table && <>
        <div ref={host} class="plot" role="img" aria-label={summary} />
        {data.series.length > 1 && <ul class="legend num">
          {data.series.slice(0, shown).map((line, i) => <li key={i} title={labelText(line.labels)}>
            <i style={{ background: `var(${inkOf(i)})` }} />{nameOf(data, i)} <b>{say(data, line, columns.current[i + 1]?.[index])}</b>
          </li>)}
          {data.series.length > shown && <li>and {data.series.length - shown} more in the table</li>}
        </ul>}
      </>}
    </section>
  );
}

function describe(data: SeriesData, [times, ...all]: Columns): string {
  const parts = data.series.slice(0, LINES).map((line, i) => {
    const known = (all[i] ?? []).filter((v) => v != null);
    if (!known.length) return `${nameOf(data, i)}: no values`;
    let low = Infinity, high = -Infinity;
    for (const v of known) { if (v < low) low = v; if (v > high) high = v; }
    return `${nameOf(data, i)}: now ${say(data, line, all[i]![all[i]!.length - 1])}, lowest ${say(data, line, low)}, highest ${say(data, line, high)}`;
  });
  return `${data.title} over ${duration((times[times.length - 1] ?? 0) - (times[0] ?? 0))}. ${parts.join(". ")}`;
}

function Table({ data, columns }: { data: SeriesData; columns: Columns }): JSX.Element {
  const [times, ...all] = columns;
  const step = Math.max(1, Math.ceil(times.length / ROWS));
  const rows: number[] = [];
  for (let i = times.length - 1; i >= 0; i -= step) rows.push(i);
  return (
    <div class="scroll tall" tabIndex={0} role="region" aria-label={`${data.title}, table`}>
      <table class="num">
        <thead><tr><th scope="col">Time</th>{data.series.map((_, i) => <th scope="col" class="r" key={i}>{nameOf(data, i)}</th>)}</tr></thead>
        <tbody>{rows.map((i) => <tr key={times[i]}><th scope="row">{clock(times[i]!)}</th>
          {data.series.map((line, k) => <td class="r" key={k}>{say(data, line, all[k]?.[i])}</td>)}</tr>)}</tbody>
      </table>
    </div>
  );
}
