// What is alarming, and what was? Active alerts with their causes, then the history.
import type { JSX } from "preact";
import { useMemo } from "preact/hooks";
import { signal, useSignalEffect } from "@preact/signals";
import { get } from "./api";
import { duration, quantity } from "./format";
import { link } from "./live";
import { resourceHref } from "./route";
import { alerts, alertsVersion, models, worstFirst } from "./store";
import { AlertTexts, At, Empty, LevelTag, Mark, ResourceLink, serverNow } from "./ui";
import type { Alert } from "./types";

const STATE_WORD = { firing: "Firing", pending: "Pending", resolved: "Resolved" } as const;

function Length({ alert }: { alert: Alert }): JSX.Element {
  const from = alert.fired_at ?? alert.since;
  return <>{duration((alert.resolved_at ?? serverNow.value) - from)}</>;
}

/** The value of an alert that is over is the worst it reached. */
export function AlertTable({ alerts: rows, resource, label }: { alerts: Alert[]; resource: boolean; label: string }): JSX.Element {
  const over = rows.every((a) => a.state === "resolved");
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={label}><table class="alerts">
      <thead><tr><th scope="col">Level</th><th scope="col">State</th>{resource && <th scope="col">Resource</th>}<th scope="col">Message and cause</th><th scope="col" class="r">{over ? "Worst" : "Value"}</th><th scope="col">Since</th><th scope="col" class="r">Lasted</th></tr></thead>
      <tbody>{rows.map((a) => <tr key={`${a.id}/${a.since}`}>
        <td><LevelTag level={a.level} /></td>
        <td>{STATE_WORD[a.state]}</td>
        {resource && <td><ResourceLink id={a.resource} /></td>}
        <td class="text">{a.message || a.title}{a.cause && <span class="cause">{a.cause}</span>}</td>
        <td class="r num">{quantity(a.value, a.unit)}</td>
        <td class="num"><At time={a.fired_at ?? a.since} /></td>
        <td class="r num"><Length alert={a} /></td>
      </tr>)}</tbody>
    </table></div>
  );
}

export function AlertsPage(): JSX.Element {
  const state = useMemo(() => ({ history: signal<Alert[] | null>(null), failed: signal("") }), []);
  useSignalEffect(() => {
    alertsVersion.value;
    if (link.value !== "live" && state.history.peek()) return;
    get<{ active: Alert[]; history: Alert[] }>("alerts")
      .then((all) => { state.history.value = all.history; state.failed.value = ""; })
      .catch((e: unknown) => { state.failed.value = e instanceof Error ? e.message : "No answer."; });
  });
  const active = worstFirst(alerts.value.filter((a) => a.state !== "resolved"));
  const by = new Map<string, Alert[]>();
  for (const a of active) by.set(a.resource, [...(by.get(a.resource) ?? []), a]);
  const history = state.history.value?.filter((a) => a.state === "resolved").sort((a, b) => (b.resolved_at ?? b.since) - (a.resolved_at ?? a.since));
  return (
    <>
      <h1>Alerts</h1>
      <section class="group">
        <h2>Active <span class="n num">{active.length}</span></h2>
        {active.length === 0 ? <div class="calm"><Mark level="ok" />Nothing is alarming.</div> :
          <ul class="active">{[...by].map(([id, of]) => <li class={`card ${of[0]!.level}`} key={id}>
            <p class="of"><a class="open" href={resourceHref(id)}>{models.get(id)?.info.name ?? id}</a></p>
            <AlertTexts alerts={of} />
          </li>)}</ul>}
      </section>
      <section class="group">
        <h2>History {history && <span class="n num">{history.length}</span>}</h2>
        {state.failed.value && !history ? <Empty title={state.failed.value} /> : !history ? <div class="wait" /> :
          history.length === 0 ? <p class="quiet">No alert has ended since the monitor started.</p> :
            <AlertTable alerts={history} resource label="Alert history" />}
      </section>
    </>
  );
}
