import { useEffect, useState } from "react";
import { pause } from "./session.js";

const RETRY_MS = 500;

/** Keeps a chat at what its session has: after a load, while others write, and through lost connections. */
export function useSession(session, { status, error, setMessages, resumeStream }) {
  const [connected, setConnected] = useState(true);

  // At rest: take what the log has, join the answer that runs, else wait until there is more.
  useEffect(() => {
    if (status !== "ready") return;
    const leaving = new AbortController();
    const follow = async () => {
      const { messages, offset, running } = await session.load(leaving.signal);
      setMessages((shown) => [...messages, ...shown.filter(({ id }) => !messages.some((known) => known.id === id))]);
      setConnected(true);
      await (running ? resumeStream() : session.moved(offset, leaving.signal));
    };
    return untilAborted(leaving, follow, () => setConnected(false));
  }, [session, status, setMessages, resumeStream]);

  // An answer that was cut off begins anew: the broker tells all of it again, and useChat starts over with it.
  useEffect(() => {
    if (status !== "error") return;
    if (error instanceof TypeError) setConnected(false);
    const timer = setTimeout(resumeStream, RETRY_MS);
    return () => clearTimeout(timer);
  }, [status, error, resumeStream]);

  return connected || status === "streaming";
}

/** Do it again and again, with a pause after a failure; returns how to end that. */
function untilAborted(leaving, step, onFailure) {
  const run = async () => {
    while (!leaving.signal.aborted) {
      try {
        await step();
      } catch {
        if (leaving.signal.aborted) return;
        onFailure();
        await pause(RETRY_MS, leaving.signal).catch(() => {});
      }
    }
  };
  run();
  return () => leaving.abort();
}
