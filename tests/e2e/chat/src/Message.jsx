import { getToolName, isToolUIPart } from "ai";

/** One message; `live` while it is being written. */
export function Message({ message, live }) {
  return (
    <li className={`message ${message.role}`} data-id={message.id} data-live={live && message.role === "assistant"}>
      {message.parts.map((part, index) => (
        <Part key={index} part={part} />
      ))}
      <Ending {...message.metadata} />
    </li>
  );
}

function Part({ part }) {
  if (part.type === "text") return <p className="text">{part.text}</p>;
  if (part.type === "reasoning") return <p className="reasoning">{part.text}</p>;
  if (isToolUIPart(part)) return <Tool part={part} />;
  return null;
}

function Tool({ part }) {
  return (
    <dl className="tool" data-state={part.state}>
      <dt>{getToolName(part)}</dt>
      <dd>{facts(part.input)}</dd>
      {part.output !== undefined && <dd className="output">{facts(part.output)}</dd>}
    </dl>
  );
}

function facts(value) {
  if (value === undefined || value === null) return "…";
  return Object.entries(value)
    .map(([name, told]) => `${name}: ${told}`)
    .join(", ");
}

/** How an answer ended that did not complete. */
function Ending({ status, reason, error }) {
  if (status === "failed") {
    return <p className="ending failed">Failed: {error?.message ?? reason ?? "no reason given"}</p>;
  }
  if (status !== "aborted") return null;
  return <p className="ending">{reason === "stopped" ? "Stopped" : `Ended: ${reason ?? "aborted"}`}</p>;
}
