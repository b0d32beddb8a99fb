// How does the page ask the server? Relative addresses only, so a sub-path proxy changes nothing.

export class Unauthorized extends Error {}

export class Failed extends Error {
  constructor(message: string, readonly status: number) { super(message); }
}

/** The server's JSON, in which no text from outside turns the direction of what stands around it on the page. */
export const decode = <T>(json: string): T =>
  JSON.parse(json.replace(/(?<!\\)((?:\\\\)*)\\u(?:202[a-e]|206[6-9])/g, "$1\\ufffd")) as T;

async function answer(response: Response): Promise<Response> {
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    const body = (await response.json()) as { error?: unknown };
    if (typeof body.error === "string") message = body.error;
  } catch { /* not JSON: the status says enough */ }
  throw response.status === 401 ? new Unauthorized(message) : new Failed(message, response.status);
}

export async function get<T>(path: string, query: Record<string, string | number> = {}, signal?: AbortSignal): Promise<T> {
  const text = new URLSearchParams(Object.entries(query).map(([k, v]) => [k, String(v)])).toString();
  const limit = AbortSignal.timeout(10_000);
  const response = await fetch(`api/${path}${text ? `?${text}` : ""}`, { signal: signal ? AbortSignal.any([signal, limit]) : limit });
  return decode<T>(await (await answer(response)).text());
}

export async function openSession(token: string): Promise<void> {
  await answer(await fetch("api/session", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  }));
}
