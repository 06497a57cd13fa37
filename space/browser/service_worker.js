// Serves files from the cache if the network is unavailable. main.js fills the cache.
self.addEventListener("fetch", (event) => {
  event.respondWith(
    fetch(event.request).catch(async (error) => {
      const response = await caches.match(event.request);
      if (response === undefined) throw error;
      return response;
    }),
  );
});
