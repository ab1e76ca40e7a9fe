"""The network in most tests: that of the program with few channels, so that a run takes milliseconds.

Nothing that these tests look at depends on the width. What does, and a few whole runs, ask for `whole_network`.
"""

from collections import OrderedDict

from torch import nn

from simsiam_sghmc import SimSiam


class SlimSimSiam(SimSiam):
    """SimSiam's modules by its own names in their order, and its forward pass; p and z have 128 numbers as there."""

    def __init__(self):
        nn.Module.__init__(self)  # not SimSiam's: drawing its weights takes longer than a gradient of these
        trunk = nn.Sequential()
        for inputs, middle, outputs in ((3, 4, 8), (8, 8, 8), (8, 16, 16)):
            trunk.extend([nn.Conv2d(inputs, middle, 3, padding=1), nn.ReLU()])
            trunk.extend([nn.Conv2d(middle, outputs, 3, padding=1), nn.ReLU()])
            trunk.extend([nn.MaxPool2d(2), nn.BatchNorm2d(outputs)])
        trunk.append(nn.Flatten())  # (B, 256)
        head = nn.Sequential(nn.Linear(256, 128), nn.ReLU())
        self.encoder = nn.Sequential(OrderedDict(trunk=trunk, head=head))
        self.predictor = nn.Sequential(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 128))
