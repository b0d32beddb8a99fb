"use strict";
// Starts and stops incidents, and shows once a second what they do. The token that was printed stays in the address:
// it goes to the dashboard and nowhere else.

const list = document.querySelector("#incidents"), alerts = document.querySelector("#alerts");
const lost = document.querySelector("#lost");
document.querySelector("#dashboard").hash = location.hash;

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

const rows = new Map();

function row(incident, number) {
  const item = document.createElement("li"), button = document.createElement("button");
  item.append(element("kbd", "", number), element("h2", "", incident.title), button, element("p", "", incident.story));
  const made = { item, button, name: incident.name, title: incident.title, on: false };
  button.addEventListener("click", () => ask(`incidents/${made.name}`, made.on ? "DELETE" : "POST"));
  list.append(item);
  return made;
}

function show(state) {
  state.incidents.forEach((incident, i) => {
    if (!rows.has(incident.name)) rows.set(incident.name, row(incident, i + 1));
    const known = rows.get(incident.name);
    known.on = incident.remaining > 0;
    known.item.classList.toggle("on", known.on);
    known.button.textContent = known.on ? `Stop · ${Math.ceil(incident.remaining)} s` : "Start";
    known.button.setAttribute("aria-label", `${known.on ? "Stop" : "Start"}: ${known.title}`);
  });
  const shown = new Map();
  for (const alert of state.alerts) {  // the worst first; all of one resource have one cause
    if (!shown.has(alert.resource)) shown.set(alert.resource, { ...alert, messages: [] });
    shown.get(alert.resource).messages.push(alert.message);
  }
  alerts.replaceChildren(...Array.from(shown.values(), ({ level, resource, messages, cause }) => {
    const item = element("li", level, "");
    item.append(element("b", "", level), ` · ${resource}`, ...messages.map((message) => element("span", "", message)));
    if (cause) item.append(element("span", "cause", cause));
    return item;
  }));
  if (!state.alerts.length) alerts.append(element("li", "calm", "Nothing is wrong."));
}

async function ask(path, method = "GET") {
  try {
    const answer = await fetch(path, { method, signal: AbortSignal.timeout(5000) });
    if (answer.ok) show(await answer.json());
    lost.hidden = answer.ok;
  } catch {
    lost.hidden = false;
  }
}

async function follow() {
  if (!document.hidden) await ask("incidents");
  setTimeout(follow, 1000);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  [...rows.values()][Number(event.key) - 1]?.button.click();
});
follow();
