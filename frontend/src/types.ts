// What does the server send? The JSON contract, as the page reads it. Times are unix seconds, a gap is null.

export type Level = "ok" | "warning" | "critical" | "unknown";
export type Status = "up" | "degraded" | "saturated" | "down" | "unknown";

export interface Verdict { level: Level; text: string }

export interface Cost {
  cpu_ratio: number | null;
  tick_seconds: number | null;
  series: number;
  history_bytes: number | null;
  retention_seconds: number | null;
}

export interface Health { status: Status; reason: string; since: number | null; checked: number | null }

export interface Figure { metric: string; title: string; value: number | null; unit: string; text?: string | null }

export interface Spark {
  metric: string;
  title: string;
  unit: string;
  min: number | null;
  max: number | null;
  times: number[];
  values: (number | null)[];
}

export interface Resource {
  id: string;
  name: string;
  type: string;
  endpoint: string | null;
  labels: Record<string, string>;
  discovered: boolean;
  library: string | null;
  note: string;
  health: Health;
  level: Level;
  figures: Figure[];
  spark: Spark | null;
  alerts: string[];
}

export interface Alert {
  id: string;
  resource: string;
  metric: string;
  title: string;
  labels: Record<string, string>;
  source: "threshold" | "anomaly" | "health";
  level: Level;
  state: "pending" | "firing" | "resolved";
  value: number | null;
  threshold: number | null;
  unit: string;
  message: string;
  cause: string;
  since: number;
  fired_at: number | null;
  resolved_at: number | null;
}

export interface Snapshot {
  version: string;
  service: string;
  host: string;
  pid: number;
  started: number;
  now: number;
  interval: number;
  running: boolean;
  last_tick: number | null;
  verdict: Verdict;
  cost: Cost;
  discovery: { resource: string; how: string }[];
  resources: Resource[];
  alerts: Alert[];
}

export interface Tick {
  now: number;
  seq: number;
  running: boolean;
  verdict: Verdict;
  cost: Cost;
  resources: Record<string, { level: Level; health: Health; figures: Figure[]; v: number | null }>;
  added: string[];
  removed: string[];
  alerts: Alert[];
}

export interface MetricSeries { labels: Record<string, string>; value: number | null; stats: Record<string, number | null> }

export interface Metric {
  name: string;
  title: string;
  kind: "gauge" | "counter" | "histogram";
  unit: string;
  description: string;
  short: string[];
  series: MetricSeries[];
}

export interface Holder { site: string; caller: string | null; since: number | null; count: number }

export interface ThresholdRow {
  metric: string;
  title: string;
  unit: string;
  warning: number | null;
  critical: number | null;
  direction: string;
  for: number;
  message: string;
  level: Level;
  default: boolean;
}

export interface Detail extends Resource {
  metrics: Metric[];
  holders: Holder[];
  waiters: Holder[];
  thresholds: ThresholdRow[];
  depends_on: string[];
  dependents: string[];
  health_history: { time: number; status: Status; reason: string }[];
  alert_history: Alert[];
  anomalies: { metric: string; labels: Record<string, string>; state: string; started: number | null; explanation: string }[];
}

export interface SeriesData {
  resource: string;
  metric: string;
  title: string;
  unit: string;
  kind: string;
  times: number[];
  series: { labels: Record<string, string>; stat: string; values: (number | null)[] }[];
  warning: number | null;
  critical: number | null;
  exact: boolean;
}

export interface GraphNode { id: string; name: string; type: string; kind: "route" | "task" | "resource" | "server"; level: Level; endpoint: string | null }
export interface GraphEdge { source: string; target: string; kind: "declared" | "observed"; calls: number; rate: number | null; errors: number; error_rate: number | null; latency: number | null }
export interface Graph { nodes: GraphNode[]; edges: GraphEdge[]; svg: string }
