// Light, dark, or as the system says? Remembered in this browser.
import { effect, signal } from "@preact/signals";

export type Theme = "auto" | "light" | "dark";

function read(key: string): string | null {
  try { return localStorage.getItem(key); } catch { return null; }
}

function write(key: string, value: string): void {
  try { localStorage.setItem(key, value); } catch { /* a private window forgets; nothing breaks */ }
}

const stored = read("uno.theme");
export const theme = signal<Theme>(stored === "light" || stored === "dark" ? stored : "auto");
export const shortcuts = signal(read("uno.shortcuts") !== "off");
/** Grows when colours have changed, so that canvases are drawn anew. */
export const paint = signal(0);

effect(() => {
  document.documentElement.dataset.theme = theme.value;
  write("uno.theme", theme.value);
  paint.value = paint.peek() + 1;
});
effect(() => write("uno.shortcuts", shortcuts.value ? "on" : "off"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { paint.value += 1; });

export const nextTheme = (): void => { theme.value = theme.value === "auto" ? "light" : theme.value === "light" ? "dark" : "auto"; };

/** The colour of a custom property as the page resolves it now. */
export function colour(name: string): string {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}
