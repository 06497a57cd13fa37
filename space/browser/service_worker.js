// Answers requests from the cache, which main.js fills, if the network is unavailable.
self.addEventListener("fetch", (event) => {
  event.respondWith(
    fetch(event.request).catch(async (error) => {
      const response = await caches.match(event.request);
      if (response === undefined) throw error;
      return response;
    }),
  );
});
