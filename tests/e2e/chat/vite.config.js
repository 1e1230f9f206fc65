import { defineConfig } from "vite";

// Served from any folder of any server; the broker's address comes in the query.
export default defineConfig({ base: "./" });
