// Replays streams with the published client: URLs come in by lines, milliseconds and the number of records go out.
import { createInterface } from "node:readline"
import { stream } from "@durable-streams/client"

for await (const url of createInterface({ input: process.stdin })) {
  const began = performance.now()
  const response = await stream({ url, offset: "-1" }) // without `live` it would end after a page; `json` ends at the present end
  const records = await response.json()
  console.log(JSON.stringify({ ms: performance.now() - began, records: records.length }))
}
