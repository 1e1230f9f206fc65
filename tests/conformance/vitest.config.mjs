import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["conformance.test.mjs"],
    // The suite waits up to 20 s for one long-poll, and a test of expiry waits out several TTLs.
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
