// Whether to believe an answer, by the thresholds in the model's file; as predict.py does.

/**
 * @param {{probabilities: number[], familiarity?: number}} result
 * @param {{classNames: string[], thresholds: {familiarity?: number, probability?: Record<string, number>}}} model
 * @param {boolean} always overrules the thresholds
 * @returns {{kind: "answered" | "unsure" | "unfamiliar", best: number, title: string}} `best` is an index
 */
export function decide({ probabilities, familiarity }, { classNames, thresholds }, always) {
  const best = probabilities.indexOf(Math.max(...probabilities));
  const name = classNames[best];
  if (!always) {
    if (familiarity < (thresholds.familiarity ?? 0)) {
      return { kind: "unfamiliar", best, title: "Unlike anything it was taught" };
    }
    const least = thresholds.probability ?? {};
    if (Object.hasOwn(least, name) && probabilities[best] < least[name]) return { kind: "unsure", best, title: "Not sure" };
  }
  return { kind: "answered", best, title: name };
}
