"""Which sigma for a last layer that begins with zeros: accuracy on held-out training images of digits.

For each of several floors, and, as 0, for a last layer that begins as the others do. Nothing of the test set is looked
at. Writes results/sigma_floor.json.

    python benchmarks/sigma_floor.py
"""

from batch_norm_sigma import BATCH_SIZE, compare

import rso_lab as rso

FLOORS = (0.0, 0.1, 0.3, 1.0, 3.0)

if __name__ == "__main__":
    methods = {floor: rso.RSO(4, BATCH_SIZE, sigma_floor=floor, batch_every="neuron") for floor in FLOORS}
    compare("sigma_floor", [("one_conv", f"floor {floor}", method) for floor, method in methods.items()])
