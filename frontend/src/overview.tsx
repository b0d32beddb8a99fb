// Is it well, what is worst, since when? The verdict, then cards: those that need attention first.
import type { JSX } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { computed, signal, type Signal } from "@preact/signals";
import { plural, quantity, typeTitle, typeWord } from "./format";
import { resourceHref, route, setQuery } from "./route";
import { counts, models, RANK, shape, verdict, type Model } from "./store";
import { Name, AlertTexts, levelFor, levelOf, Bar, connection, Empty, HealthPill, Mark, Spark, type Connection } from "./ui";
import type { Level } from "./types";

const UTILIZATION = "uno.resource.utilization";

// --- only what can be seen is drawn ---------------------------------------------------------------------------------

const watched = new WeakMap<Element, Signal<boolean>>();
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) { const seen = watched.get(entry.target); if (seen) seen.value = entry.isIntersecting; }
}, { rootMargin: "300px" });

function Card({ model }: { model: Model }): JSX.Element {
  const root = useRef<HTMLElement>(null);
  const seen = useMemo(() => signal(false), []);
  useEffect(() => {
    const element = root.current!;
    watched.set(element, seen);
    observer.observe(element);
    return () => observer.unobserve(element);
  }, []);
  const { info } = model;
  const level = seen.value ? model.live.value.level : model.live.peek().level;
  return (
    <article ref={root} class={`card ${level}`}>
      <h3><a class="open" href={resourceHref(info.id)}><Name text={info.name} /></a></h3>
      <CardBody model={model} seen={seen} />
    </article>
  );
}

/** Out of sight nothing is subscribed to: what was last drawn stays, and before that the health word stands alone. */
function CardBody({ model, seen }: { model: Model; seen: Signal<boolean> }): JSX.Element {
  const drawn = useRef<JSX.Element | null>(null);
  if (!seen.value) return (drawn.current ??= <HealthPill health={model.live.peek().health} level={model.live.peek().level} />);
  return (drawn.current = drawCard(model)); // a plain call: its signals are this component's
}

function drawCard(model: Model): JSX.Element {
  const { info } = model;
  const { health, level, figures } = model.live.value;
  const alerts = model.alerts.value;
  const spark = info.spark;
  const use = figures.find((f) => f.metric === UTILIZATION) ?? figures.find((f) => f.metric === spark?.metric);
  const others = figures.filter((f) => f !== use).slice(0, 3);
  const last = model.values[model.values.length - 1];
  const reason = level !== "ok" || health.status !== "up" ? health.reason : "";
  return (
    <>
      <HealthPill health={health} level={level} />
      <p class="kind"><span>{typeWord(info.type)}</span>{info.id !== info.name && <span>{info.id}</span>}{info.endpoint && <span class="endpoint" title={info.endpoint}>{info.endpoint}</span>}</p>
      <AlertTexts alerts={alerts.slice(0, 3)} />
      {alerts.length > 3 && <p class="more">and {plural(alerts.length - 3, "more alert")}</p>}
      {alerts.length === 0 && reason && <p class="reason">{reason}</p>}
      {use && <div class="use">
        {use.metric === UTILIZATION && <Bar ratio={use.value} level={levelFor(use.metric, alerts)} label={`${info.name}: ${use.title}`} />}
        <p class="num"><span>{use.text || use.title}</span><b>{quantity(use.value, use.unit)}</b></p>
      </div>}
      {spark && <Spark times={model.times} values={model.values} min={spark.min} max={spark.max}
        label={`${spark.title}, now ${quantity(last, spark.unit)}`} />}
      {others.length > 0 && <dl class="figures num">
        {others.map((f) => <div key={f.metric + f.title} class={levelFor(f.metric, alerts)} title={f.text || undefined}><dt>{f.title}</dt><dd>{quantity(f.value, f.unit)}</dd></div>)}
      </dl>}
      {info.note && <p class="note">{info.note}</p>}
    </>
  );
}

// --- which cards, in which order ------------------------------------------------------------------------------------

interface Group { key: string; title: string; list: Model[] }

const severity = (m: Model): number => {
  const { level, health } = m.live.peek();
  return RANK[level] * 10 + RANK[levelOf(health.status)];
};

const query = computed(() => route.value.query.get("q") ?? "");
const type = computed(() => route.value.query.get("type") ?? "");

const groups = computed<{ attention: Model[]; groups: Group[]; shown: number }>(() => {
  shape.value;
  const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = type.value;
  const attention: Model[] = [];
  const by = new Map<string, Model[]>();
  let shown = 0;
  for (const model of models.values()) {
    const { info } = model;
    if (wanted && info.type !== wanted) continue;
    if (words.length) {
      const text = [info.id, info.name, info.type, info.endpoint, info.library, ...Object.entries(info.labels).map((e) => e.join("="))].join(" ").toLowerCase();
      if (!words.every((w) => text.includes(w))) continue;
    }
    shown += 1;
    const { level } = model.live.peek();
    if (level === "critical" || level === "warning") { attention.push(model); continue; }
    const list = by.get(info.type);
    if (list) list.push(model); else by.set(info.type, [model]);
  }
  const order = (a: Model, b: Model): number => severity(b) - severity(a) || a.info.name.localeCompare(b.info.name, undefined, { numeric: true });
  attention.sort(order);
  const list = [...by].map(([key, of]) => ({ key, title: typeTitle(key), list: of.sort(order) })).sort((a, b) => a.title.localeCompare(b.title));
  return { attention, groups: list, shown };
});

const types = computed(() => {
  shape.value;
  const n = new Map<string, number>();
  for (const { info } of models.values()) n.set(info.type, (n.get(info.type) ?? 0) + 1);
  return [...n].sort(([a], [b]) => typeTitle(a).localeCompare(typeTitle(b)));
});

function Filters(): JSX.Element {
  return (
    <form class="filters" role="search" onSubmit={(e) => e.preventDefault()}>
      <label class="vh" for="search">Search resources</label>
      <span class="search"><input id="search" type="search" placeholder="Search by name, type, label" autocomplete="off" spellcheck={false} value={query.value}
        onInput={(e) => setQuery("q", e.currentTarget.value)}
        onKeyDown={(e) => { if (e.key === "Escape") { setQuery("q", ""); e.currentTarget.blur(); e.preventDefault(); } }} />
      <kbd aria-hidden="true">/</kbd></span>
      <label class="vh" for="type">Type</label>
      <select id="type" value={type.value} onChange={(e) => setQuery("type", e.currentTarget.value)}>
        <option value="">All types</option>
        {types.value.map(([t, n]) => <option key={t} value={t}>{typeTitle(t)} ({n})</option>)}
      </select>
    </form>
  );
}

function Count({ level, n, word }: { level: Level; n: number; word: string }): JSX.Element | null {
  return n > 0 ? <li class={level}><Mark level={level} /><b>{n.toLocaleString("en-US")}</b> {word}</li> : null;
}

const PAST = new Set<Connection>(["lost", "stopped", "stalled"]);

function Verdict(): JSX.Element {
  const { level, text } = verdict.value;
  const n = counts.value;
  return (
    <section class={`verdict ${level}`} aria-label="Verdict">
      <h1>{PAST.has(connection.value) && <span class="last">Last known</span>}{text}</h1>
      <ul class="counts num">
        <Count level="critical" n={n.critical} word="critical" />
        <Count level="warning" n={n.warning} word="warning" />
        <Count level="unknown" n={n.unknown} word="unknown" />
        <Count level="ok" n={n.ok} word="well" />
      </ul>
    </section>
  );
}

const CARD = 268, GAP = 12; // px
const columns = signal(1); // outlives the page, so that coming back finds every card where it was

/** Small groups share a row: each is as many columns wide as it has cards. */
function Groups({ list }: { list: Group[] }): JSX.Element {
  const root = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const measure = (): void => { columns.value = Math.max(1, Math.floor((root.current!.clientWidth + GAP) / (CARD + GAP))); };
    measure();
    const watch = new ResizeObserver(measure);
    watch.observe(root.current!);
    return () => watch.disconnect();
  }, []);
  const n = columns.value;
  return (
    <div ref={root} class="groups" style={{ "--columns": n }}>
      {list.map((g) => {
        const span = Math.min(n, g.list.length);
        return (
          <section class="group" key={g.key} style={{ "--span": span, gridColumn: `span ${span}` }}>
            <h2>{g.title} <span class="n num">{g.list.length}</span></h2>
            <div class="grid">{g.list.map((m) => <Card key={m.info.id} model={m} />)}</div>
          </section>
        );
      })}
    </div>
  );
}

const FIRST_LINES = `monitor = setup_monitoring(app)
monitor.manager.register(engine, id="main-db")`;

function FirstSteps(): JSX.Element {
  return (
    <>
      <p>Register a resource, an SQLAlchemy engine for example, and its card appears here at the next tick:</p>
      <pre tabIndex={0}><code>{FIRST_LINES}</code></pre>
      <p>Or let uno find what the application already has: <code>monitor.discover_all_resources()</code></p>
    </>
  );
}

/** What every process has, without a word of its application. */
const OWN = new Set(["process", "event_loop", "file_handle", "host"]);

export function Overview(): JSX.Element {
  shape.value;
  const state = connection.value;
  if (models.size === 0) {
    return (
      <section class="welcome">
        <h1>Nothing is monitored yet</h1>
        <FirstSteps />
      </section>
    );
  }
  const { attention, groups: list, shown } = groups.value;
  return (
    <>
      <Verdict />
      {models.size > 3 && <Filters />}
      {shown === 0 && <Empty title="No resource matches">
        <button type="button" class="button" onClick={() => { setQuery("q", ""); setQuery("type", ""); }}>Show all {models.size}</button>
      </Empty>}
      <div class={PAST.has(state) ? "stale" : ""}>
        {attention.length > 0 && <section class="group attention">
          <h2>Needs attention <span class="n num">{attention.length}</span></h2>
          <div class="grid wide">{attention.map((m) => <Card key={m.info.id} model={m} />)}</div>
        </section>}
        <Groups list={list} />
      </div>
      {types.value.every(([t]) => OWN.has(t)) && <section class="welcome">
        <h2>So far this is the process itself</h2>
        <FirstSteps />
      </section>}
    </>
  );
}
