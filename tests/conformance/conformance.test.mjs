// The suite registers its cases when it is called; the broker under test is named by the environment.
import { runConformanceTests } from "@durable-streams/server-conformance-tests";

const baseUrl = process.env.STREAMFOLD_URL;
if (!baseUrl) throw new Error("STREAMFOLD_URL must name the broker to test");

runConformanceTests({ baseUrl, subscriptions: true });
