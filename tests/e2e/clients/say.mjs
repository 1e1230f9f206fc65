// How a program tells its test what it sees: one JSON value a line.
export function say(facts) {
  process.stdout.write(JSON.stringify(facts) + "\n");
}
