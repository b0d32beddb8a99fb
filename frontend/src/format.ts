// How is a number or a time said? Units are UCUM codes as in OpenTelemetry: "s", "By", "1" (a ratio), "{connection}", "By/s".

export const DASH = "–";

/** Two significant digits are calm when they change each second; an axis or a table needs three. */
let fine = 0;

function digits(x: number): string {
  const a = Math.abs(x);
  if (a === 0) return "0";
  if (a >= 1000) return Math.round(x).toLocaleString("en-US");
  const text = a >= 100 ? x.toFixed(0) : a >= 10 ? x.toFixed(fine) : a >= 1 ? x.toFixed(1 + fine) : a >= 0.1 ? x.toFixed(2 + fine) : x.toPrecision(2 + fine);
  return text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text;
}

function scaled(x: number, steps: readonly (readonly [number, string])[]): string {
  const a = Math.abs(x);
  for (const [size, unit] of steps) if (a >= size) return `${digits(x / size)} ${unit}`;
  const last = steps[steps.length - 1]!;
  return a === 0 ? `0 ${last[1]}` : `${digits(x / last[0])} ${last[1]}`;
}

const BYTES = [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [1024, "KiB"], [1, "B"]] as const;
const SECONDS = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]] as const;
const COUNT = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]] as const;

function count(x: number): string {
  const a = Math.abs(x);
  for (const [size, unit] of COUNT) if (a >= (unit === "k" ? 1e4 : size)) return `${digits(x / (unit === "k" ? 1e3 : size))} ${unit}`;
  return digits(x);
}

/** As `quantity`, with one digit more. */
export function exact(value: number | null | undefined, unit: string, rate = false): string {
  fine = 1;
  try { return quantity(value, unit, rate); } finally { fine = 0; }
}

/** A value with its unit; `rate` adds "/s". */
export function quantity(value: number | null | undefined, unit: string, rate = false): string {
  if (value == null || Number.isNaN(value)) return DASH;
  if (unit.endsWith("/s")) { unit = unit.slice(0, -2); rate = true; }
  const per = rate ? "/s" : "";
  if (unit === "1" && !rate) return `${digits(Math.abs(value) < 1e-4 ? 0 : value * 100)} %`;
  if (unit === "%") return `${digits(value)} %`;
  if (unit === "s" && !rate) return Math.abs(value) >= 60 ? duration(value) : scaled(value, SECONDS);
  if (unit === "s") return quantity(value, "1"); // seconds in a second: a share of one core
  if (unit === "ms" && !rate) return scaled(value / 1000, SECONDS);
  if (unit === "By") return scaled(value, BYTES) + per;
  if (unit === "{cpu}") return `${digits(value)} ${Math.abs(value) === 1 ? "core" : "cores"}`;
  if (unit === "" || unit === "1" || unit.startsWith("{")) return count(value) + per;
  return `${count(value)} ${unit}${per}`;
}

/** A length of time in its two largest parts: "12 s", "3 min", "2 h 5 min", "4 d 3 h". */
export function duration(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  const parts: [number, string][] = [[Math.floor(s / 86400), "d"], [Math.floor(s / 3600) % 24, "h"], [Math.floor(s / 60) % 60, "min"], [s % 60, "s"]];
  const first = parts.findIndex(([n]) => n > 0);
  const shown = parts.slice(first, first + 2).filter(([n, unit], i) => n > 0 && (i === 0 || unit !== "s" || s < 600));
  return shown.map(([n, unit]) => `${n} ${unit}`).join(" ");
}

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });

/** Local time of day; with the date when it is not today's. */
export function clock(time: number): string {
  const d = new Date(time * 1000);
  const today = d.toDateString() === new Date().toDateString();
  return today ? CLOCK.format(d) : `${DAY.format(d)}, ${CLOCK.format(d)}`;
}

export const fullTime = (time: number): string => FULL.format(new Date(time * 1000));

export const plural = (n: number, one: string, many = `${one}s`): string => `${n.toLocaleString("en-US")} ${n === 1 ? one : many}`;

const TYPE_WORDS: Record<string, string> = {
  database: "Databases",
  http_client: "HTTP clients",
  redis: "Redis",
  thread_pool: "Thread pools",
  task_queue: "Task queues",
  file_handle: "Files",
  files: "Files",
  message_broker: "Message brokers",
  process: "Process",
  event_loop: "Event loops",
  custom: "Custom",
};

export const typeWord = (type: string): string => type.replace(/_/g, " ");
export const typeTitle = (type: string): string => {
  const word = typeWord(type);
  return TYPE_WORDS[type] ?? word.charAt(0).toUpperCase() + word.slice(1);
};

export const labelText = (labels: Record<string, string>): string =>
  Object.entries(labels).map(([k, v]) => `${k}=${v}`).join(", ");
