/**
 * Keeps the page itself (some hundred kilobytes) for use without a connection. Models and the engine are kept by the
 * page's worker, by digest; the API is never touched here.
 */
declare const self: ServiceWorkerGlobalScope;

// The build puts the list of files, and a version that changes with any of them, in this place.
const SHELL = JSON.parse("__SHELL__") as { readonly version: string; readonly files: readonly string[] };
const PREFIX = "pocketdx-page-";
const CACHE = PREFIX + SHELL.version;
const SCOPE = new URL(self.registration.scope);
const PAGE = new URL("index.html", SCOPE).href;
const KEPT = new Set(SHELL.files.map((each) => new URL(each, SCOPE).href));

self.addEventListener("install", (event) => {
  // "reload": past the browser's own cache, so that one version is never mixed of two.
  const requests = [...KEPT].map((url) => new Request(url, { cache: "reload" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(requests)));
});

self.addEventListener("activate", (event) => {
  // No page of an earlier version is open any more: the browser waits for that.
  event.waitUntil(
    caches.keys().then((names) =>
      Promise.all(names.filter((name) => name.startsWith(PREFIX) && name !== CACHE).map((name) => caches.delete(name))),
    ),
  );
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET") return;
  const url = new URL(request.url);
  url.search = "";
  url.hash = "";
  const isPage = request.mode === "navigate" && (url.href === SCOPE.href || url.href === PAGE);
  const address = isPage ? PAGE : url.href;
  if (!KEPT.has(address)) return;
  event.respondWith(
    caches
      .open(CACHE)
      .then((cache) => cache.match(address))
      .then((kept) => kept ?? fetch(request)),
  );
});

export {};
