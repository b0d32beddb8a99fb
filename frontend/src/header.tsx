// What stands above every page? Name, verdict, how live it is, theme, own cost; and the keys.
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { signal } from "@preact/signals";
import { DASH, duration, plural, quantity } from "./format";
import { heard, paused, pulse, setPaused } from "./live";
import { go, overviewHref, route } from "./route";
import { alerts, cost, lastTick, meta, models, shape, verdict } from "./store";
import { nextTheme, shortcuts, theme } from "./theme";
import { connection, LEVEL_WORD, Mark, serverNow } from "./ui";

export const keysOpen = signal(false);

const VERDICT_WORD = { ok: "All well", warning: "Needs attention", critical: "Critical", unknown: "Unknown" } as const;

function LinkState(): JSX.Element {
  const state = connection.value;
  const age = duration(pulse.value - heard.value / 1000);
  const words = {
    starting: "Connecting…",
    locked: "Locked",
    live: "Live",
    paused: "Paused",
    lost: heard.value ? `Reconnecting… last data ${age} ago` : "Reconnecting…",
    stopped: "Monitor stopped",
    stalled: `No new tick for ${duration(serverNow.value - (lastTick.value ?? serverNow.value))}`,
  }[state];
  return <span class={`link ${state} num`}><i class="dot" aria-hidden="true" />{words}</span>;
}

function OwnCost(): JSX.Element | null {
  const c = cost.value;
  if (!c) return null;
  const title = `uno itself: ${quantity(c.cpu_ratio, "1")} of one core, ${quantity(c.tick_seconds, "s")} a tick, `
    + `${plural(c.series, "series", "series")}, ${quantity(c.history_bytes, "By")} of history`;
  return <span class="cost num" title={title}><span class="vh">Cost of monitoring: </span>{c.cpu_ratio == null ? DASH : quantity(c.cpu_ratio, "1")} CPU</span>;
}

export function Header(): JSX.Element {
  const page = route.value.page;
  const level = verdict.value.level;
  const known = meta.value !== null;
  const active = alerts.value.filter((a) => a.state === "firing").length;
  const item = (to: string, name: typeof page, text: string, badge = 0): JSX.Element => (
    <a href={to} aria-current={page === name ? "page" : undefined}>{text}{badge > 0 && <span class="badge num">{badge}<span class="vh"> firing</span></span>}</a>
  );
  const isPaused = paused.value;
  return (
    <header class="top">
      <div class="row">
        <a class="brand" href="#/"><b>uno</b>{known && meta.value!.service && <span class="service">{meta.value!.service}</span>}</a>
        {known && (connection.value === "live" || connection.value === "paused") && <span class={`word ${level}`}><Mark level={level} />{VERDICT_WORD[level]}</span>}
        {known && <nav aria-label="Pages">
          {item("#/", "overview", "Overview")}
          {item("#/map", "map", "Map")}
          {item("#/alerts", "alerts", "Alerts", active)}
        </nav>}
        <span class="grow" />
        <LinkState />
        <OwnCost />
        <div class="actions">
        {known && <button type="button" class="ghost" aria-label={isPaused ? "Resume" : "Pause"} onClick={() => setPaused(!isPaused)} title="Hold the page still (p)">
          <svg viewBox="0 0 16 16" width="14" height="14" aria-hidden="true"><path d={isPaused ? "M4.5 2.5v11l9-5.5z" : "M4 3h2.6v10H4zM9.4 3H12v10H9.4z"} fill="currentColor" /></svg>
          <span class="name">{isPaused ? "Resume" : "Pause"}</span>
        </button>}
        <button type="button" class="ghost" onClick={nextTheme} title={`Theme: ${theme.value} (t)`}>
          <svg viewBox="0 0 16 16" width="14" height="14" aria-hidden="true">
            <circle cx="8" cy="8" r="6.2" fill="none" stroke="currentColor" stroke-width="1.5" />
            {theme.value === "auto" && <path d="M8 1.8a6.2 6.2 0 0 1 0 12.4z" fill="currentColor" />}
            {theme.value === "dark" && <circle cx="8" cy="8" r="6" fill="currentColor" />}
          </svg>
          <span class="vh">Theme: </span><span class="name">{theme.value === "auto" ? "Auto" : theme.value === "light" ? "Light" : "Dark"}</span>
        </button>
        <button type="button" class="ghost" onClick={() => { keysOpen.value = true; }} title="Keys (?)" aria-label="Keyboard shortcuts">?</button>
        </div>
      </div>
    </header>
  );
}

/** Says a change of the verdict's level, or of the connection, to a screen reader: once, not on every tick. */
export function Announcer(): JSX.Element {
  const level = verdict.value.level;
  const state = connection.value;
  const before = useRef("");
  const [text, say] = useState("");
  useEffect(() => {
    const now = `${level}/${state}`;
    say(state === "lost" ? "Connection lost, reconnecting." : state === "stopped" ? "The monitor is stopped."
      : state === "live" && before.current && before.current !== now ? `${LEVEL_WORD[level]}: ${verdict.peek().text}` : "");
    before.current = now;
  }, [level, state]);
  return <div class="vh" role="status">{text}</div>;
}

const KEYS: [string, string][] = [
  ["/", "search the resources"], ["1", "overview"], ["2", "map"], ["3", "alerts"], ["j  k", "next, previous resource"],
  ["Enter", "open it"], ["p", "pause or resume"], ["t", "theme"], ["?", "this list"], ["Esc", "close, clear, go back"],
];

export function Keys(): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null);
  const open = keysOpen.value;
  useEffect(() => {
    const d = dialog.current!;
    if (open && !d.open) d.showModal(); else if (!open && d.open) d.close();
  }, [open]);
  return (
    <dialog ref={dialog} class="keys" aria-labelledby="keys-title" onClose={() => { keysOpen.value = false; }}
      onClick={(e) => { if (e.target === dialog.current) keysOpen.value = false; }}>
      <div class="inner">
        <h2 id="keys-title">Keys</h2>
        <dl>{KEYS.map(([key, text]) => <div key={key}><dt>{key.split(/\s+/).map((k) => <kbd key={k}>{k}</kbd>)}</dt><dd>{text}</dd></div>)}</dl>
        <label class="check"><input type="checkbox" checked={shortcuts.value} onChange={(e) => { shortcuts.value = e.currentTarget.checked; }} />Single-key shortcuts</label>
        <button type="button" class="button" onClick={() => { keysOpen.value = false; }}>Close</button>
      </div>
    </dialog>
  );
}

function step(by: number): void {
  const links = [...document.querySelectorAll<HTMLElement>("main a.open")];
  if (!links.length) return;
  const at = links.indexOf(document.activeElement as HTMLElement);
  const next = links[at < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(links.length - 1, Math.max(0, at + by))];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

export function listenToKeys(): void {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || keysOpen.peek()) return;
    const at = event.target as HTMLElement;
    if (event.key === "Escape" && route.peek().page === "resource" && !/^(INPUT|SELECT)$/.test(at.tagName)) { location.hash = overviewHref.peek(); return; }
    if (!shortcuts.peek() || /^(INPUT|SELECT|TEXTAREA)$/.test(at.tagName) || meta.peek() === null) return;
    const act: Record<string, () => void> = {
      "/": () => {
        if (route.peek().page !== "overview") go("#/");
        // After a new page was drawn, which is a microtask as well, and before the next key.
        queueMicrotask(() => document.getElementById("search")?.focus());
      },
      "?": () => { keysOpen.value = true; },
      "1": () => { location.hash = "#/"; },
      "2": () => { location.hash = "#/map"; },
      "3": () => { location.hash = "#/alerts"; },
      j: () => step(1),
      k: () => step(-1),
      p: () => setPaused(!paused.peek()),
      t: nextTheme,
    };
    const run = act[event.key];
    if (run) { event.preventDefault(); run(); }
  });
}

export function Footer(): JSX.Element | null {
  shape.value;
  const m = meta.value, c = cost.value;
  if (!m || !c) return null;
  const minutes = c.retention_seconds == null ? null : duration(c.retention_seconds);
  return (
    <footer class="foot">
      <p class="num">
        <span>uno {m.version}</span>
        <span>{m.host}, process {m.pid}</span>
        <span>up {duration(serverNow.value - m.started)}</span>
        <span>tick every {quantity(m.interval, "s")}, costs {quantity(c.tick_seconds, "s")}</span>
        <span>{plural(models.size, "resource")}, {plural(c.series, "series", "series")}</span>
        <span>{quantity(c.history_bytes, "By")} of history{minutes && `, ${minutes}`}</span>
        {models.size > 0 && <span>Report of the last hour: <a href="api/report.csv?hours=1" download>CSV</a>, <a href="api/report?hours=1">JSON</a></span>}
      </p>
      {m.discovery.length > 0 && <details>
        <summary>{plural(m.discovery.length, "resource was", "resources were")} discovered</summary>
        <ul>{m.discovery.slice(0, 200).map((d) => <li key={d.resource}><b>{d.resource}</b> {d.how}</li>)}</ul>
      </details>}
    </footer>
  );
}
