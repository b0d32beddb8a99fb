// Which small pieces do all pages share?
import { Fragment } from "preact";
import type { ComponentChildren, JSX } from "preact";
import { computed } from "@preact/signals";
import { clock, duration, fullTime, quantity } from "./format";
import { heard, link, paused, pulse } from "./live";
import { lastTick, meta, models, now, RANK, running } from "./store";
import { resourceHref } from "./route";
import type { Alert, Health, Level, Status } from "./types";

export const LEVEL_WORD: Record<Level, string> = { ok: "OK", warning: "Warning", critical: "Critical", unknown: "Unknown" };
export const STATUS_WORD: Record<Status, string> = {
  up: "Up", degraded: "Degraded", saturated: "Saturated", down: "Down", unknown: "Unknown",
};

export const levelOf = (status: Status): Level =>
  status === "up" ? "ok" : status === "down" ? "critical" : status === "unknown" ? "unknown" : "warning";

/** The level's shape: a disc, a triangle, an octagon, a dashed ring. Never colour alone. */
export function Mark({ level }: { level: Level }): JSX.Element {
  return (
    <svg class={`mark ${level}`} viewBox="0 0 16 16" width="14" height="14" aria-hidden="true">
      {level === "ok" && <><circle cx="8" cy="8" r="7" /><path class="ink" d="M4.8 8.3l2.2 2.2 4.2-4.6" /></>}
      {level === "warning" && <><path d="M8 1.2 15.4 14.4H.6z" stroke-linejoin="round" /><path class="ink" d="M8 6v4M8 12v.4" /></>}
      {level === "critical" && <><path d="M5 .8h6L15.2 5v6L11 15.2H5L.8 11V5z" /><path class="ink" d="M8 4v5M8 11.4v.6" /></>}
      {level === "unknown" && <circle class="ring" cx="8" cy="8" r="6" />}
    </svg>
  );
}

export function HealthPill({ health, level }: { health: Health; level: Level }): JSX.Element {
  const word = STATUS_WORD[health.status];
  const worst = level === "ok" ? levelOf(health.status) : level;
  // Two unknowns need one word; "Up" with a warning needs both.
  const second = level === "ok" || (level === "unknown" && health.status === "unknown") ? "" : LEVEL_WORD[level];
  return (
    <span class={`pill ${worst}`} title={health.reason || undefined}>
      <Mark level={worst} />{word}{second && <span class="second">{second}</span>}
    </span>
  );
}

export function LevelTag({ level }: { level: Level }): JSX.Element {
  return <span class={`tag ${level}`}><Mark level={level} />{LEVEL_WORD[level]}</span>;
}

/** The level that the active alerts give to one metric. */
export function levelFor(metric: string, alerts: Alert[]): Level {
  let worst: Level = "ok";
  for (const a of alerts) if (a.state === "firing" && a.metric === metric && RANK[a.level] > RANK[worst]) worst = a.level;
  return worst;
}

export function Bar({ ratio, level, label }: { ratio: number | null; level: Level; label: string }): JSX.Element {
  const share = ratio == null ? 0 : Math.min(1, Math.max(0, ratio));
  return (
    <div class={`bar ${level}${ratio == null ? " gap" : ""}`} role="meter" aria-label={label} aria-valuemin={0} aria-valuemax={100}
      aria-valuenow={Math.round(share * 100)} aria-valuetext={quantity(ratio, "1")}>
      <i style={{ width: `${share * 100}%` }} />
    </div>
  );
}

const W = 240, H = 36;

/** Own sparkline: one path and its area, gaps stay gaps. */
export function Spark({ times, values, min, max, label }: {
  times: number[]; values: (number | null)[]; min: number | null; max: number | null; label: string;
}): JSX.Element {
  let low = min ?? Infinity, high = max ?? -Infinity;
  for (const v of values) if (v != null) { if (v < low) low = v; if (v > high) high = v; }
  if (min == null && low > 0 && low < high * 0.5) low = 0;
  if (!(high > low)) { high = Math.max(high, low) + 1; if (!Number.isFinite(high)) { low = 0; high = 1; } }
  const t0 = times[0] ?? 0, span = Math.max(1e-9, (times[times.length - 1] ?? 1) - t0);
  let line = "", area = "", startX = "", lastX = "";
  const close = (): void => { if (startX) area += `L${lastX} ${H}L${startX} ${H}Z`; startX = ""; };
  for (let i = 0; i < values.length; i++) {
    const v = values[i];
    if (v == null) { close(); continue; }
    const x = (((times[i]! - t0) / span) * W).toFixed(1);
    const y = (H - 2 - ((v - low) / (high - low)) * (H - 4)).toFixed(1);
    if (!startX) { startX = x; line += `M${x} ${y}l.01 0`; area += `M${x} ${y}`; } else { line += `L${x} ${y}`; area += `L${x} ${y}`; }
    lastX = x;
  }
  close();
  return (
    <svg class="spark" viewBox={`0 0 ${W} ${H}`} preserveAspectRatio="none" role="img" aria-label={label}>
      <path class="area" d={area} /><path class="line" d={line} />
    </svg>
  );
}

/** The server's time, moved on by this browser's clock since the newest data; it stands still while paused. */
export const serverNow = computed(() => {
  if (paused.value || !heard.value) return now.value;
  return now.value + Math.max(0, pulse.value - heard.value / 1000);
});

export function Ago({ time, bare = false }: { time: number; bare?: boolean }): JSX.Element {
  const age = serverNow.value - time;
  const text = age < 1 ? (bare ? "0 s" : "now") : bare ? duration(age) : `${duration(age)} ago`;
  return <time class="num" dateTime={new Date(time * 1000).toISOString()} title={fullTime(time)}>{text}</time>;
}

export function At({ time }: { time: number }): JSX.Element {
  return <time class="num" dateTime={new Date(time * 1000).toISOString()} title={fullTime(time)}>{clock(time)}</time>;
}

export function ResourceLink({ id }: { id: string }): JSX.Element {
  return models.has(id) ? <a href={resourceHref(id)}>{models.get(id)!.info.name}</a> : <span>{id}</span>;
}

/** What the alert says: its message, its value against the limit, and the cause on a line of its own. */
export function AlertText({ alert, withCause }: { alert: Alert; withCause: boolean }): JSX.Element {
  const value = alert.value != null && `${alert.title || alert.metric} ${quantity(alert.value, alert.unit)}`;
  const limit = alert.threshold != null && `limit ${quantity(alert.threshold, alert.unit)}`;
  return (
    <div class={`alert ${alert.level} ${alert.state}`}>
      <p class="message">
        <Mark level={alert.level} />
        <span><span class="vh">{LEVEL_WORD[alert.level]}: </span>{alert.message || alert.title}</span>
      </p>
      {withCause && <p class="cause"><span class="label">Cause</span>{alert.cause}</p>}
      <p class="facts num">
        {[value, limit].filter(Boolean).join(", ")}
        {alert.state === "pending" && <span class="state">pending</span>}
        <span class="since">since <Ago time={alert.fired_at ?? alert.since} bare /></span>
      </p>
    </div>
  );
}

/** Alerts of one resource. Most have one cause, said at different seconds: it is shown once. */
export function AlertTexts({ alerts }: { alerts: Alert[] }): JSX.Element {
  const said = new Set<string>();
  return <>{alerts.map((a) => {
    const cause = a.cause.replace(/[\d.]+/g, "");
    const fresh = cause !== "" && !said.has(cause);
    said.add(cause);
    return <AlertText key={a.id} alert={a} withCause={fresh} />;
  })}</>;
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }): JSX.Element {
  return <div class="empty"><p class="title">{title}</p>{children}</div>;
}

export type Connection = "starting" | "live" | "paused" | "lost" | "stalled" | "stopped" | "locked";

/** One word for how fresh the page is. */
export const connection = computed<Connection>(() => {
  if (link.value === "locked" || link.value === "starting") return link.value;
  if (paused.value) return "paused";
  const interval = meta.value?.interval ?? 1;
  const age = pulse.value - heard.value / 1000;
  if (link.value === "lost" || age > Math.max(6, 4 * interval)) return "lost";
  if (!running.value) return "stopped";
  if (lastTick.value !== null && serverNow.value - lastTick.value > Math.max(6, 4 * interval)) return "stalled";
  return "live";
});

/** A name that breaks after a dot or an underscore, before it breaks anywhere. */
export function Name({ text }: { text: string }) {
  return <>{text.split(/(?<=[._/:@-])/).map((part, i) => <Fragment key={i}>{i > 0 && <wbr />}{part}</Fragment>)}</>;
}
