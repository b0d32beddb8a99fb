// What is with this one resource? Its state and cause, who holds it, how it went, what it depends on.
import type { ComponentChildren, JSX } from "preact";
import { useEffect, useMemo } from "preact/hooks";
import { signal, useSignalEffect } from "@preact/signals";
import { Failed, get } from "./api";
import { Chart } from "./chart";
import { duration, labelText, quantity, typeWord } from "./format";
import { link, paused } from "./live";
import { overviewHref, route, setQuery } from "./route";
import { models, now, worstFirst } from "./store";
import { Name, Ago, AlertTexts, At, Bar, Empty, HealthPill, levelFor, levelOf, LevelTag, ResourceLink, STATUS_WORD } from "./ui";
import { AlertTable } from "./alerts";
import type { Detail, Holder } from "./types";

const RANGES: [string, string, number][] = [
  ["5m", "5 min", 300], ["15m", "15 min", 900], ["1h", "1 h", 3600], ["6h", "6 h", 21600], ["24h", "24 h", 86400], ["7d", "7 d", 604800],
];

function Section({ title, children, n }: { title: string; children: ComponentChildren; n?: number }): JSX.Element {
  return <section class="panel"><h2>{title}{n !== undefined && <span class="n num">{n}</span>}</h2>{children}</section>;
}

function Holders({ title, rows, none }: { title: string; rows: Holder[]; none: string }): JSX.Element {
  return (
    <Section title={title} n={rows.reduce((n, h) => n + h.count, 0)}>
      {rows.length === 0 ? <p class="quiet">{none}</p> :
        <div class="scroll" tabIndex={0} role="region" aria-label={title}><table>
          <thead><tr><th scope="col">Where in the code</th><th scope="col">On behalf of</th><th scope="col" class="r">Count</th><th scope="col" class="r">Longest</th></tr></thead>
          <tbody>{rows.map((h, i) => <tr key={`${h.site}|${h.caller}|${i}`}>
            <td class="code">{h.site}</td><td>{h.caller ?? <span class="quiet">outside of a request</span>}</td>
            <td class="r num">{h.count}</td><td class="r num">{h.since == null ? "–" : <Ago time={h.since} bare />}</td>
          </tr>)}</tbody>
        </table></div>}
    </Section>
  );
}

export function ResourcePage({ id }: { id: string }): JSX.Element {
  const state = useMemo(() => ({ detail: signal<Detail | null>(null), error: signal(""), busy: false, last: 0 }), [id]);

  const load = (): void => {
    if (state.busy) return;
    state.busy = true;
    get<Detail>("resource", { id }).then((d) => { state.detail.value = d; state.error.value = ""; })
      .catch((e: unknown) => { if (e instanceof Failed && e.status < 500) state.error.value = e.message; })
      .finally(() => { state.busy = false; });
  };
  useEffect(load, [id]);
  useSignalEffect(() => {
    // With each tick, at most once a second: this page alone asks for details.
    const t = now.value;
    if (paused.value || document.hidden || link.value !== "live" || Math.abs(t - state.last) < 0.9) return;
    state.last = t;
    load();
  });

  const d = state.detail.value;
  const query = route.value.query;
  const name = models.get(id)?.info.name ?? id;
  if (!d) {
    return (
      <>
        <p class="crumb"><a href={overviewHref.value}>Overview</a></p>
        <h1 class="vh">{name}</h1>
        {state.error.value ? <Empty title={state.error.value}><a class="button" href="#/">All resources</a></Empty> : <div class="wait tall" />}
      </>
    );
  }
  const model = models.get(id);
  const live = model?.live.value ?? d;
  const alerts = model ? model.alerts.value : [];
  const use = live.figures.find((f) => f.metric === "uno.resource.utilization");
  const chosen = RANGES.find(([key]) => key === query.get("range")) ?? RANGES[1]!;
  const table = query.get("table") === "1";
  const metrics = d.metrics.filter((m) => m.series.length > 0);
  const gone = state.error.value !== "";
  return (
    <>
      <p class="crumb"><a href={overviewHref.value}>Overview</a></p>
      <header class="head">
        <h1 class="name" title={d.name}><Name text={d.name} /></h1>
        <HealthPill health={live.health} level={live.level} />
        {live.health.since != null && <span class="quiet num">since <Ago time={live.health.since} bare /></span>}
        {gone && <p class="failed">{state.error.value}</p>}
        {live.health.reason && <p class="reason">{live.health.reason}</p>}
        <p class="facts">
          <span>{typeWord(d.type)}</span>
          {d.id !== d.name && <span class="code">{d.id}</span>}
          {d.endpoint && <span class="code">{d.endpoint}</span>}
          {d.library && <span>{d.library}</span>}
          <span>{d.discovered ? "discovered" : "registered"}</span>
          {Object.entries(d.labels).map(([k, v]) => <span class="chip" key={k} title={v}>{`${k}=${v}`}</span>)}
        </p>
        {d.note && <p class="note">{d.note}</p>}
      </header>

      {alerts.length > 0 && <div class="stack"><AlertTexts alerts={alerts} /></div>}

      <section class="capacity" aria-label="Now">
        {use && <div class="use">
          <p class="num"><b>{quantity(use.value, use.unit)}</b><span>{use.text ? `${use.title}, ${use.text}` : use.title}</span></p>
          <Bar ratio={use.value} level={levelFor(use.metric, alerts)} label={use.title} />
        </div>}
        <dl class="figures num">
          {live.figures.filter((f) => f !== use).map((f) => <div key={f.metric + f.title} class={levelFor(f.metric, alerts)}><dt>{f.title}</dt><dd>{quantity(f.value, f.unit)}</dd>{f.text && <dd class="sub">{f.text}</dd>}</div>)}
        </dl>
      </section>

      {(d.holders.length > 0 || d.waiters.length > 0) && <div class="two">
        <Holders title="Held by" rows={d.holders} none="Nobody holds it now." />
        <Holders title="Waited for by" rows={d.waiters} none="Nobody waits." />
      </div>}

      {metrics.length > 0 && <section class="charts">
        <div class="bar-row">
          <h2>Metrics</h2>
          <div class="ranges" role="group" aria-label="Time range">
            {RANGES.map(([key, text]) => <button type="button" key={key} aria-pressed={key === chosen[0]} onClick={() => setQuery("range", key)}>{text}</button>)}
          </div>
          <button type="button" class="ghost" aria-pressed={table} onClick={() => setQuery("table", table ? "" : "1")}>Show as table</button>
        </div>
        <div class="chart-grid">
          {metrics.map((m) => <Chart key={m.name} id={id} metric={m} range={chosen[2]} table={table} detail={state.detail} />)}
        </div>
      </section>}

      <div class="two">
        <Section title="Thresholds">
          {d.thresholds.length === 0 ? <p class="quiet">None is set.</p> :
            <div class="scroll" tabIndex={0} role="region" aria-label="Thresholds"><table>
              <thead><tr><th scope="col">Metric</th><th scope="col" class="r">Warning</th><th scope="col" class="r">Critical</th><th scope="col">For</th><th scope="col">Level</th></tr></thead>
              <tbody>{d.thresholds.map((t, i) => <tr key={i} title={t.message || undefined}>
                <td>{t.title || t.metric}{t.default && <span class="quiet"> default</span>}</td>
                <td class="r num">{t.warning == null ? "–" : `${t.direction === "below" ? "<" : ">"} ${quantity(t.warning, t.unit)}`}</td>
                <td class="r num">{t.critical == null ? "–" : `${t.direction === "below" ? "<" : ">"} ${quantity(t.critical, t.unit)}`}</td>
                <td class="num">{t.for ? duration(t.for) : "at once"}</td><td><LevelTag level={t.level} /></td>
              </tr>)}</tbody>
            </table></div>}
        </Section>
        <Section title="Dependencies">
          <dl class="deps">
            <div><dt>Needs</dt><dd>{d.depends_on.length === 0 ? <span class="quiet">nothing known</span> : d.depends_on.map((x) => <ResourceLink id={x} key={x} />)}</dd></div>
            <div><dt>Needed by</dt><dd>{d.dependents.length === 0 ? <span class="quiet">nothing known</span> : d.dependents.map((x) => <ResourceLink id={x} key={x} />)}</dd></div>
          </dl>
        </Section>
      </div>

      <Section title="Alerts" n={d.alert_history.length}>
        {d.alert_history.length === 0 ? <p class="quiet">None so far.</p> : <AlertTable alerts={worstFirst(d.alert_history)} resource={false} label="Alerts of this resource" />}
      </Section>

      <div class="two">
        <Section title="Health">
          {d.health_history.length === 0 ? <p class="quiet">No change so far.</p> :
            <ul class="events">{[...d.health_history].sort((a, b) => b.time - a.time).slice(0, 50).map((h, i) => <li key={`${h.time}${i}`}>
              <At time={h.time} /><span class={`tag ${levelOf(h.status)}`}>{STATUS_WORD[h.status]}</span><span>{h.reason}</span>
            </li>)}</ul>}
        </Section>
        <Section title="Unusual behaviour">
          {d.anomalies.length === 0 ? <p class="quiet">No metric of this resource is watched. <code>configure_anomaly_detection(…)</code> starts it.</p> :
            <ul class="events">{d.anomalies.map((a) => <li key={a.metric + labelText(a.labels)}>
              <b>{d.metrics.find((m) => m.name === a.metric)?.title ?? a.metric}</b>
              {Object.keys(a.labels).length > 0 && <span title={labelText(a.labels)}>{Object.values(a.labels).join(" ")}</span>}
              <span class={a.started == null ? "quiet" : "tag warning"}>{a.started == null ? a.state : <>unusual since <Ago time={a.started} bare /></>}</span>
              {a.explanation && <span>{a.explanation}</span>}
            </li>)}</ul>}
        </Section>
      </div>
    </>
  );
}
