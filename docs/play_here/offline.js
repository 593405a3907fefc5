// A service worker: keeps the page for visits without a network, and allows threads where the server does not say so.
//
// Large files are kept by files.js; here are those that the browser itself asks for.

const CACHE = "diamond_gym page";
const PAGE = ["./", "page.json", "icon.svg", "play.css", "here.css", "page.js", "files.js", "keys.js", "pad.js", "numbers.js", "session.js",
  "world.js", "ort/ort.wasm.min.mjs", "ort/ort-wasm-simd-threaded.mjs"];

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(PAGE)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  const isPages = event.request.method === "GET" && url.origin === self.location.origin;
  if (isPages && !url.searchParams.has("v")) event.respondWith(newestOf(event.request));
});

/** Return the server's answer, or the last one where there is no network. */
async function newestOf(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(withoutQuery(request), response.clone());
    return isolated(response);
  } catch (error) {
    const kept = await cache.match(withoutQuery(request));
    if (!kept) throw error;
    return isolated(kept);
  }
}

const withoutQuery = ({ url }) => url.split(/[?#]/)[0].replace(/index\.html$/, "");

/** Add the headers without which browsers have no shared memory, and so no threads. */
function isolated(response) {
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
