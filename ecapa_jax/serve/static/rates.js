// Error rates at any threshold, bounded by the bundle's operating points: both rates are monotonic in the threshold,
// so the measured thresholds on either side give the limits.

export function ratesAt(points, threshold) {
  return [...new Set(points.map((point) => point.trials))].map((trials) => {
    const sorted = points.filter((point) => point.trials === trials).sort((one, other) => one.threshold - other.threshold);
    const below = sorted.filter((point) => point.threshold <= threshold).at(-1);
    const above = sorted.find((point) => point.threshold >= threshold);
    return {
      trials,
      far: [above?.far ?? 0, below?.far ?? 1],
      frr: [below?.frr ?? 0, above?.frr ?? 1],
    };
  });
}

export function formatRange([low, high]) {
  const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}`;
  if (percent(low) === percent(high)) return `${percent(low)} %`;
  if (high === 1) return `at least ${percent(low)} %`;
  if (low === 0) return `at most ${percent(high)} %`;
  return `${percent(low)} to ${percent(high)} %`;
}
