// Serves files from the cache if the network is unavailable. main.js fills the cache.
self.addEventListener("fetch", (event) => {
  event.respondWith(
    fetch(event.request).catch(async (error) => {
      // The page can be opened with different addresses, such as index.html.
      const response = await caches.match(event.request.mode === "navigate" ? "./" : event.request);
      if (response === undefined) throw error;
      return response;
    }),
  );
});
