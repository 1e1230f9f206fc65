// The reference server for Node, as its own documentation starts it: node server.mjs PORT [DATA_DIR]; without a folder, in memory.
import { DurableStreamTestServer } from "@durable-streams/server"

const [port, dataDir] = process.argv.slice(2)
await new DurableStreamTestServer({ port: Number(port), host: "127.0.0.1", ...(dataDir && { dataDir }) }).start()
