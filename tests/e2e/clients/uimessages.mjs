// What the AI SDK makes of UI messages: for each, in lines of the file named, why it is none, or what a model would get.
import { readFile } from "node:fs/promises";
import { convertToModelMessages, safeValidateUIMessages } from "ai";
import { say } from "./say.mjs";

const lines = (await readFile(process.argv[2], "utf8")).trim().split("\n");
const result = [];
for (const line of lines) {
  const validated = await safeValidateUIMessages({ messages: [JSON.parse(line)] });
  if (!validated.success) {
    result.push({ refused: validated.error.message.slice(0, 2000) });
    continue;
  }
  const sent = await convertToModelMessages(validated.data, { ignoreIncompleteToolCalls: true });
  result.push({ roles: sent.map((message) => message.role) });
}
say({ result });
