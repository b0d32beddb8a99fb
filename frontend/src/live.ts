// How does the page stay fresh? A stream of ticks, one per browser where it can be shared; asking, where it cannot.
import { signal } from "@preact/signals";
import { decode, get, openSession, Unauthorized } from "./api";
import { applySnapshot, applyTick, meta } from "./store";
import type { Snapshot, Tick } from "./types";

const PATIENCE = 3000; // ms without an event after which the page asks by itself
const POLL = 2000; // ms between two such questions

export type Link = "starting" | "live" | "lost" | "locked";
export const link = signal<Link>("starting");
export const paused = signal(false);
/** Why a token is asked for; "" before the first refusal. */
export const refusal = signal("");
/** The browser's clock, every second: relative times follow it. */
export const pulse = signal(Date.now() / 1000);
/** When this page last got data, by the browser's clock (ms). */
export const heard = signal(0);

let seq = -1;
let loading: Promise<void> | null = null;
let asked = 0;

function unlocked(error: unknown): void {
  if (error instanceof Unauthorized) { refusal.value = error.message; link.value = "locked"; disconnect(); }
  else if (link.value !== "locked") link.value = "lost";
}

/** Fetches the whole state; concurrent calls share one request. */
export function refresh(): Promise<void> {
  asked = Date.now();
  loading ??= get<Snapshot>("snapshot")
    .then((snapshot) => {
      if (paused.peek()) return;
      applySnapshot(snapshot);
      heard.value = Date.now();
      if (link.value !== "live") { link.value = "live"; connect(); }
    })
    .catch(unlocked)
    .finally(() => { loading = null; });
  return loading;
}

function receive(tick: Tick): void {
  if (paused.peek() || meta.peek() === null) return;
  const restarted = tick.seq < seq - 1;
  const missed = seq >= 0 && tick.seq > seq + 5;
  if (tick.seq === seq) return;
  seq = tick.seq;
  heard.value = Date.now();
  link.value = "live";
  applyTick(tick);
  if (restarted || missed || tick.added.length || tick.removed.length) void refresh();
}

// --- the stream -----------------------------------------------------------------------------------------------------

const channel = "BroadcastChannel" in window ? new BroadcastChannel(`uno.ticks:${location.pathname}`) : null;
if (channel) channel.onmessage = (event: MessageEvent<Tick>) => receive(event.data);

let release: (() => void) | null = null;

function connect(): void {
  if (release || document.hidden || paused.peek()) return;
  const stop = new AbortController();
  release = () => { release = null; stop.abort(); };
  // navigator.locks exists on https and loopback only; elsewhere each tab has its own stream.
  if (navigator.locks && channel) {
    navigator.locks.request(`uno.stream:${location.pathname}`, { signal: stop.signal }, () => stream(stop.signal)).catch(() => {});
  } else {
    void stream(stop.signal);
  }
}

function disconnect(): void { release?.(); }

/** Holds one stream open until `stop`. The server ends a stream every few seconds; EventSource comes back by itself. */
function stream(stop: AbortSignal): Promise<void> {
  return new Promise((done) => {
    let source: EventSource;
    let again = 0;
    const open = (): void => {
      source = new EventSource("api/stream");
      source.addEventListener("tick", (event) => {
        const tick = decode<Tick>((event as MessageEvent<string>).data);
        receive(tick);
        channel?.postMessage(tick);
      });
      source.onerror = () => {
        // An answer other than 200 closes it for good: try anew, and let the snapshot tell why.
        if (source.readyState === EventSource.CLOSED && !stop.aborted) { clearTimeout(again); again = window.setTimeout(open, POLL); }
      };
    };
    open();
    stop.addEventListener("abort", () => { clearTimeout(again); source.close(); done(); }, { once: true });
  });
}

function watch(): void {
  pulse.value = Date.now() / 1000;
  if (document.hidden || paused.peek() || link.peek() === "locked") return;
  const patience = Math.max(PATIENCE, 2500 * (meta.peek()?.interval ?? 1));
  if (Date.now() - heard.peek() > patience && Date.now() - asked >= POLL) void refresh();
}

export function setPaused(value: boolean): void {
  paused.value = value;
  if (value) disconnect(); else { connect(); void refresh(); }
}

/** Exchanges a token for a session; true when it was right. */
export async function signIn(token: string): Promise<boolean> {
  try {
    await openSession(token);
  } catch (error) {
    refusal.value = error instanceof Unauthorized ? error.message : error instanceof Error ? error.message : "No answer.";
    return false;
  }
  link.value = "starting";
  await refresh();
  return link.peek() !== "locked";
}

/** Takes a token out of the address, where it must not stay; null where there is none. */
function takeToken(): string | null {
  const token = /^#token=(.*)$/.exec(location.hash)?.[1];
  if (token === undefined) return null;
  history.replaceState(null, "", location.pathname + location.search + "#/");
  window.dispatchEvent(new HashChangeEvent("hashchange"));
  try { return decodeURIComponent(token); } catch { return token; }
}

export async function start(): Promise<void> {
  const token = takeToken();
  if (token) {
    // The preloaded snapshot was refused; take it out of the way of the next one.
    await fetch("api/snapshot").catch(() => undefined);
    if (!(await signIn(token))) link.value = "locked";
  } else {
    await refresh();
  }
  window.setInterval(watch, 1000);
  // The printed address, opened where the page is open already: the browser only says that the hash has changed.
  window.addEventListener("hashchange", () => {
    const late = takeToken();
    if (late) void signIn(late);
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { disconnect(); return; }
    if (link.peek() === "locked" || paused.peek()) return;
    connect();
    void refresh();
  });
  window.addEventListener("pagehide", disconnect);
  window.addEventListener("pageshow", (event) => { if (event.persisted && link.peek() === "live") { connect(); void refresh(); } });
}
