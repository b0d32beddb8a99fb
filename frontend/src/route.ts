// Which page is shown? The whole state is in the address: #/resource/shop-db?range=15m
import { computed, signal } from "@preact/signals";

export type Page = "overview" | "resource" | "map" | "alerts";
export interface Route { page: Page; id: string; query: URLSearchParams }

function parse(hash: string): Route {
  const text = hash.replace(/^#\/?/, "");
  const cut = text.indexOf("?");
  const path = (cut < 0 ? text : text.slice(0, cut)).split("/");
  const query = new URLSearchParams(cut < 0 ? "" : text.slice(cut + 1));
  let id = "";
  try { id = decodeURIComponent(path.slice(1).join("/")); } catch { /* a malformed escape names no resource */ }
  if (path[0] === "resource" && id) return { page: "resource", id, query };
  if (path[0] === "map" || path[0] === "alerts") return { page: path[0], id: "", query };
  return { page: "overview", id: "", query };
}

export const route = signal(parse(location.hash));
export const pageKey = computed(() => `${route.value.page}/${route.value.id}`);

/** The overview as it was last seen, with its filters. */
export const overviewHref = signal("#/");

const scrolled = new Map<string, number>();
history.scrollRestoration = "manual";

function follow(): void {
  scrolled.set(pageKey.peek(), window.scrollY);
  const next = parse(location.hash);
  if (next.page === "overview") overviewHref.value = location.hash || "#/";
  route.value = next;
}

window.addEventListener("hashchange", follow);

/** Goes to a page at once: the browser tells of a new address only after the next keys. */
export function go(hash: string): void {
  location.hash = hash;
  follow();
}

/** Where the page was left; a resource always begins at its top. */
export const scrollOf = (key: string): number => (key.startsWith("resource/") ? 0 : scrolled.get(key) ?? 0);

export const resourceHref = (id: string): string => `#/resource/${encodeURIComponent(id)}`;

/** Changes one parameter of the page shown, without a new entry in the browser's history. */
export function setQuery(name: string, value: string): void {
  const { page, id, query } = route.value;
  const next = new URLSearchParams(query);
  if (value) next.set(name, value); else next.delete(name);
  const path = page === "overview" ? "#/" : page === "resource" ? resourceHref(id) : `#/${page}`;
  const text = next.toString();
  const hash = text ? `${path}?${text}` : path;
  history.replaceState(null, "", hash);
  if (page === "overview") overviewHref.value = hash;
  route.value = { page, id, query: next };
}
