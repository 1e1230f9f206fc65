// Resolves once `holds()` is true; a test that waits for it in vain is ended from outside.
export async function until(holds) {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5));
}
