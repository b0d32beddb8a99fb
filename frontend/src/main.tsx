// Where does the page begin? It takes over the shell that the server sent.
import { render, type JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import "uplot/dist/uPlot.min.css";
import "./app.css";
import { AlertsPage } from "./alerts";
import { Announcer, Footer, Header, Keys, listenToKeys } from "./header";
import { heard, link, refusal, signIn, start } from "./live";
import { MapPage } from "./map";
import { Overview } from "./overview";
import { ResourcePage } from "./resource";
import { pageKey, resourceHref, route, scrollOf } from "./route";
import { alerts, meta, models } from "./store";
import "./theme";
import { connection, Empty } from "./ui";
import { clock } from "./format";

function TokenForm(): JSX.Element {
  const [token, setToken] = useState("");
  const [busy, setBusy] = useState(false);
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    setBusy(true);
    if (!(await signIn(token.trim()))) setToken("");
    setBusy(false);
  };
  return (
    <section class="signin">
      <h1>This dashboard asks for a token</h1>
      <p>The application prints it once when it starts, in an address that ends with <code>#token=…</code>. Open that address, or enter the token here.</p>
      <form onSubmit={(e) => { void submit(e); }}>
        <label for="token">Token</label>
        <input id="token" name="token" type="password" autocomplete="current-password" required value={token} aria-describedby="refusal" onInput={(e) => setToken(e.currentTarget.value)} />
        <button type="submit" class="button primary" disabled={busy || !token.trim()}>{busy ? "Opening…" : "Open"}</button>
        <p id="refusal" class="failed" role="alert">{refusal.value}</p>
      </form>
      <p class="quiet">It is fixed by the environment variable <code>UNO_DASHBOARD_TOKEN</code>.</p>
    </section>
  );
}

/** Says at the top of the page that what follows is not the present. */
function Notice(): JSX.Element | null {
  const state = connection.value;
  if (!meta.value) return null;
  if (state === "lost") {
    return <div class="notice lost"><b>The connection is lost.</b> What you see is from {clock(heard.value / 1000)}. The page goes on by itself as soon as the application answers.</div>;
  }
  if (state === "stopped") {
    return <div class="notice"><b>The monitor is stopped.</b> The figures below are the last that it read. <code>resource_monitor.start()</code> starts it again.</div>;
  }
  if (state === "stalled") return <div class="notice lost"><b>The monitor does not tick.</b> The application answers, but nothing was read for a while.</div>;
  if (state === "paused") return <div class="notice"><b>Paused.</b> The page stands still at {clock(heard.value / 1000)}; monitoring and alerts go on.</div>;
  return null;
}

function PageShown(): JSX.Element {
  const { page, id } = route.value;
  if (link.value === "locked") return <TokenForm />;
  if (!meta.value) {
    return link.value === "lost"
      ? <Empty title="The application does not answer"><p>The page tries again every two seconds.</p></Empty>
      : <><h1 class="vh">Loading</h1><Skeleton /></>;
  }
  if (page === "resource") return <ResourcePage key={id} id={id} />;
  if (page === "map") return <MapPage />;
  if (page === "alerts") return <AlertsPage />;
  return <Overview />;
}

function Skeleton(): JSX.Element {
  return <div class="skeleton" aria-hidden="true"><div class="wait title" /><div class="grid">{[0, 1, 2, 3, 4, 5].map((i) => <div class="wait card-shape" key={i} />)}</div></div>;
}

/** Keeps a place while cards come into sight and take their size; lets go as soon as the user moves. */
function settle(place: () => void): void {
  const watch = new ResizeObserver(place);
  watch.observe(document.getElementById("main")!);
  const stop = (): void => { watch.disconnect(); for (const kind of ["wheel", "keydown", "pointerdown", "touchstart"]) removeEventListener(kind, stop); };
  for (const kind of ["wheel", "keydown", "pointerdown", "touchstart"]) addEventListener(kind, stop, { passive: true });
  setTimeout(stop, 700);
}

function App(): JSX.Element {
  const key = pageKey.value;
  const known = meta.value !== null;
  const firing = alerts.value.filter((a) => a.state === "firing").length;
  const from = useRef("");
  useEffect(() => {
    const { page, id } = route.peek();
    const what = page === "resource" ? models.get(id)?.info.name ?? id : page.charAt(0).toUpperCase() + page.slice(1);
    document.title = (firing > 0 ? `(${firing}) ` : "") + [what, meta.peek()?.service, "uno"].filter(Boolean).join(" · ");
  }, [key, known, firing]);
  useEffect(() => {
    if (!known) return;
    const searching = document.activeElement?.id === "search";  // who came by that key begins at the top
    const y = searching ? 0 : scrollOf(key);
    const left = from.current;
    from.current = key;
    // The link that led here is gone with its page: take the keyboard along, back to the card it came from.
    const card = left.startsWith("resource/") && y > 0 ? document.querySelector<HTMLElement>(`a.open[href="${CSS.escape(resourceHref(left.slice(9)))}"]`) : null;
    const place = (): void => { if (card) card.closest(".card")?.scrollIntoView({ block: "center" }); else window.scrollTo(0, y); };
    place();
    if (y > 0) settle(place);
    if (card) card.focus({ preventScroll: true });
    else if (left && document.activeElement === document.body) document.getElementById("main")!.focus({ preventScroll: true });
  }, [key, known]);
  return (
    <>
      <a class="skip" href="#main" onClick={(e) => { e.preventDefault(); document.getElementById("main")?.focus(); }}>Skip to the content</a>
      <Header />
      <main id="main" tabIndex={-1}><Notice /><PageShown /></main>
      <Footer />
      <Announcer />
      <Keys />
    </>
  );
}

const root = document.getElementById("app")!;
root.replaceChildren();
render(<App />, root);
listenToKeys();
void start();
