"""Shared by the tests of the program itself: small images on disk and a way to run the command line in-process."""

import os
import shutil

import pytest

if os.environ.get("SGHMC_IMPL"):  # somebody else's sampler is under test: only the oracle runs
    collect_ignore_glob = ["test_*.py"]
else:
    import torch
    from hypothesis import settings
    from PIL import Image
    from slim_network import SlimSimSiam

    import simsiam_sghmc
    from simsiam_sghmc import SimSiam

    settings.register_profile("program", deadline=None, database=None, derandomize=bool(os.environ.get("CI")))
    settings.load_profile("program")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # set in ../conftest.py
    SMALL = "--batch-size 4 --knn-k 3 --eval-every 2".split()

    @pytest.fixture(scope="session")
    def pictures(tmp_path_factory):
        """An image folder with 3 classes, 24 training and 12 test images of its own colour and noise each."""
        root = tmp_path_factory.mktemp("pictures")
        g = torch.Generator().manual_seed(0)
        for split, count in (("train", 8), ("test", 4)):
            for label, name in enumerate(("ant", "bee", "cat")):
                folder = root / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    image = torch.randint(0, 120, (3, 32, 32), generator=g)
                    image[label] += 100
                    Image.fromarray(image.byte().permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
        return root

    @pytest.fixture(scope="session", autouse=True)
    def images_are_read_once(pictures):
        """Hundreds of runs see the same folder; tests of reading make folders of their own."""
        read, place = simsiam_sghmc.load_data, str(pictures)
        data = read(place)
        simsiam_sghmc.load_data = lambda where: data if where == place else read(where)
        yield
        simsiam_sghmc.load_data = read

    @pytest.fixture(scope="session", autouse=True)
    def slim_network():
        """All tests run with SlimSimSiam as the program's network, but those that ask for whole_network."""
        simsiam_sghmc.SimSiam = SlimSimSiam
        yield
        simsiam_sghmc.SimSiam = SimSiam

    def network_of_a2():
        """The test runs with the network of A.2 itself, of 1,668,096 parameters; the folders of `chains` do not fit."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simsiam_sghmc, "SimSiam", SimSiam)
            yield

    whole_network = pytest.fixture(network_of_a2)
    whole_network_in_this_file = pytest.fixture(network_of_a2, scope="module")

    def command(pictures, out, line):
        words = line.split()
        leapfrogs = [] if "sgd" in words else ["--L", "2"]  # each method refuses the settings of the other
        return [*SMALL, *leapfrogs, "--data", str(pictures), "--out", str(out), *words]

    @pytest.fixture
    def run(pictures, tmp_path, capfd):
        """run("--eps 1 ...", out="name") -> (exit code, stdout, stderr, run folder), on the small images."""

        def call(line="", out="run"):
            code = simsiam_sghmc.main(command(pictures, tmp_path / out, line))
            text = capfd.readouterr()
            return code, text.out, text.err, tmp_path / out

        return call

    LINE = "--no-sg --eps 0.01 --samples"

    @pytest.fixture(scope="session")
    def chains(pictures, tmp_path_factory):
        """The run folders of one chain after 2 and after 4 samples, never to be written to."""
        folders = {n: tmp_path_factory.mktemp("chains") / str(n) for n in (2, 4)}
        for n, folder in folders.items():
            assert simsiam_sghmc.main(command(pictures, folder, f"{LINE} {n}")) == 0
        return folders

    @pytest.fixture
    def begun(chains, tmp_path):
        """A run folder of the test's own, tmp_path/run, that holds two samples of the chain LINE."""
        return shutil.copytree(chains[2], tmp_path / "run")
