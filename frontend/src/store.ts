// What does the page know? One model per resource, filled by the snapshot and moved on by each tick.
import { batch, computed, signal, type Signal } from "@preact/signals";
import type { Alert, Cost, Figure, Health, Level, Resource, Snapshot, Tick, Verdict } from "./types";

const SPARK_POINTS = 120; // a card's line grows from the snapshot's 60 points to this many, then slides

export interface Live { level: Level; health: Health; figures: Figure[] }

export class Model {
  readonly live: Signal<Live>;
  readonly alerts: Signal<Alert[]> = signal([]);
  times: number[] = [];
  values: (number | null)[] = [];

  constructor(public info: Resource) {
    this.live = signal({ level: info.level, health: info.health, figures: info.figures });
    this.load(info);
  }

  load(info: Resource): void {
    const spark = info.spark;
    // A fresh snapshot brings its own past; keep what this page saw before that.
    const first = spark?.times[0] ?? Infinity;
    const keep = this.times.findIndex((t) => t >= first);
    let before = keep < 0 ? this.times.length : keep;
    // What was seen long before is no neighbour of it: a line between them would be invented.
    const step = spark && spark.times.length > 1 ? spark.times[1]! - spark.times[0]! : 1;
    if (before > 0 && first - this.times[before - 1]! > 5 * step) before = 0;
    const from = Math.max(0, before - (SPARK_POINTS - (spark?.times.length ?? 0)));
    this.times = [...this.times.slice(from, before), ...(spark?.times ?? [])];
    this.values = [...this.values.slice(from, before), ...(spark?.values ?? [])];
    this.info = info;
    this.live.value = { level: info.level, health: info.health, figures: info.figures };
  }

  push(time: number, value: number | null): void {
    const last = this.times[this.times.length - 1];
    if (last !== undefined && time <= last) return;
    this.times.push(time);
    this.values.push(value);
    if (this.times.length > SPARK_POINTS) { this.times.shift(); this.values.shift(); }
  }
}

export interface Meta {
  version: string; service: string; host: string; pid: number; started: number; interval: number;
  discovery: { resource: string; how: string }[];
}

export const models = new Map<string, Model>();
export const meta = signal<Meta | null>(null);
export const verdict = signal<Verdict>({ level: "unknown", text: "Waiting for the first tick." });
export const cost = signal<Cost | null>(null);
export const alerts = signal<Alert[]>([]);
/** Server time of the newest data, and the tick it belongs to. */
export const now = signal(Date.now() / 1000);
export const running = signal(true);
export const lastTick = signal<number | null>(null);
/** Grows when a resource comes, goes or changes its level: only then are the cards sorted anew. */
export const shape = signal(0);
/** Grows when the set of active alerts, or one's state, changes. */
export const alertsVersion = signal(0);

let alertsKey = "";

function setAlerts(list: Alert[]): void {
  const key = list.map((a) => `${a.id}/${a.state}/${a.level}`).join();
  alerts.value = list;
  const by = new Map<string, Alert[]>();
  for (const alert of list) {
    const of = by.get(alert.resource);
    if (of) of.push(alert); else by.set(alert.resource, [alert]);
  }
  for (const [id, model] of models) {
    const next = by.get(id);
    if (next || model.alerts.peek().length) model.alerts.value = next ? worstFirst(next) : [];
  }
  if (key !== alertsKey) { alertsKey = key; alertsVersion.value += 1; }
}

export const RANK: Record<Level, number> = { critical: 3, warning: 2, unknown: 1, ok: 0 };
const STATE: Record<Alert["state"], number> = { firing: 2, pending: 1, resolved: 0 };

export const worstFirst = (list: Alert[]): Alert[] =>
  [...list].sort((a, b) => STATE[b.state] - STATE[a.state] || RANK[b.level] - RANK[a.level] || b.since - a.since);

export function applySnapshot(snapshot: Snapshot): void {
  batch(() => {
    const { version, service, host, pid, started, interval, discovery } = snapshot;
    meta.value = { version, service, host, pid, started, interval, discovery };
    const seen = new Set<string>();
    for (const resource of snapshot.resources) {
      seen.add(resource.id);
      const model = models.get(resource.id);
      if (model) model.load(resource); else models.set(resource.id, new Model(resource));
    }
    for (const id of models.keys()) if (!seen.has(id)) models.delete(id);
    verdict.value = snapshot.verdict;
    cost.value = snapshot.cost;
    now.value = snapshot.now;
    running.value = snapshot.running;
    lastTick.value = snapshot.last_tick;
    setAlerts(snapshot.alerts);
    shape.value += 1;
  });
}

export function applyTick(tick: Tick): void {
  batch(() => {
    let moved = false;
    for (const [id, next] of Object.entries(tick.resources)) {
      const model = models.get(id);
      if (!model) continue;
      if (model.live.peek().level !== next.level) moved = true;
      model.push(tick.now, next.v);
      model.live.value = { level: next.level, health: next.health, figures: next.figures };
    }
    verdict.value = tick.verdict;
    cost.value = tick.cost;
    now.value = tick.now;
    running.value = tick.running;
    lastTick.value = tick.now;
    setAlerts(tick.alerts);
    if (moved) shape.value += 1;
  });
}

/** How many resources are at each level. */
export const counts = computed(() => {
  shape.value;
  const n: Record<Level, number> = { critical: 0, warning: 0, unknown: 0, ok: 0 };
  for (const model of models.values()) n[model.live.peek().level] += 1;
  return n;
});
