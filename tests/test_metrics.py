"""The metrics against pytorch-fid, numpy, closed forms, and everything that can be wrong with files and data."""

import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from common import metrics, scores
from common.data import load_dataset
from common.files import UserError, stream
from common.metrics import Evaluator, Inception, InceptionScore, Moments, Score, frechet_distance, matrix_root, to_uint8
from tests.conftest import REAL_DATA

PARTIAL = REAL_DATA / "inception-2015-12-05-upto-Mixed_7a.pth"
pytestmark = pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated")  # pytorch-fid's call of scipy
real_network = pytest.mark.skipif(not PARTIAL.exists(), reason=f"no {PARTIAL}")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten compact training steps: enough for all but the test of what it learns."""
    monkeypatch.setattr(metrics, "COMPACT_STEPS", (10, 10))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=stream(seed, "test"))


def pictures(n: int, seed: int = 0, size: int = 8) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=stream(seed, "pictures"))


def classes(n: int = 300, seed: int = 0, digest: str = "one") -> SimpleNamespace:
    """Three classes of 8x8 pictures: noise around red, green and blue."""
    labels = torch.arange(n) % 3
    images = pictures(n, seed) // 2
    images[torch.arange(n), labels] += 100
    return SimpleNamespace(name="colours", images=images, labels=labels, digest=digest)


def batches(images: Tensor, size: int = 100) -> Callable[[int], Tensor]:
    return lambda k: images[k * size : (k + 1) * size]


def ready(name: str, data: SimpleNamespace, folder: Path, log=print, check=lambda: None, **options) -> Evaluator:
    """An evaluator of `data` that can score."""
    evaluator = Evaluator(name, CPU, folder, **options)
    evaluator.log, evaluator.check = log, check
    evaluator.use(data)
    evaluator.prepare()
    return evaluator


# ---- statistics ------------------------------------------------------------------------------------------------------


def covariance(d: int, condition: float, seed: int = 0) -> Tensor:
    basis = torch.linalg.qr(normal(d, d, seed=seed))[0]
    values = torch.logspace(0, -np.log10(condition), d, dtype=torch.float64)
    return (basis * values) @ basis.T


def few_images(n: int, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of fewer images than features."""
    x = scale * normal(n, 48, seed=seed)
    return x.mean(0), x.T.cov()


@pytest.mark.parametrize(
    ("one", "two", "rel"),
    [
        ((normal(48), covariance(48, 10)), (normal(48, seed=1), covariance(48, 10, 1)), 1e-6),
        ((normal(48), covariance(48, 1e6)), (normal(48, seed=1), covariance(48, 1e6, 1)), 1e-6),
        ((normal(48), covariance(48, 1e6)), (normal(48), covariance(48, 1e6, 1)), 1e-6),  # no means to drown it
        (few_images(20, 1, 0), few_images(30, 1.5, 1), 1e-4),
    ],
)
def test_frechet_distance_is_pytorch_fids(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor], rel: float) -> None:
    from pytorch_fid.fid_score import calculate_frechet_distance

    want = calculate_frechet_distance(*(x.numpy() for x in (*one, *two)))
    assert frechet_distance(*one, *two) == pytest.approx(want, rel=rel)
    assert frechet_distance(*one, *two, matrix_root(one[1])) == pytest.approx(want, rel=rel)
    assert frechet_distance(*one, *one) == pytest.approx(0, abs=1e-9 if rel == 1e-6 else 1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e200])
def test_frechet_distance_of_what_is_not_finite_is_nan(bad: float) -> None:
    mu, cov = torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    broken = cov.clone()
    broken[1, 2] = broken[2, 1] = bad
    assert np.isnan(frechet_distance(mu, cov, mu, broken * broken))
    assert np.isnan(frechet_distance(mu, broken * broken, mu, cov))
    assert np.isnan(frechet_distance(mu, cov, (mu + bad) ** 2, cov))


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_moments_are_numpys(batch: int) -> None:
    x = normal(100, 5) + 1e6  # naive sums of squares would lose twelve digits to this mean
    moments = Moments(5)
    for part in x.split(batch):
        moments.add(part)
    assert moments.n == 100
    np.testing.assert_allclose(moments.mean, x.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.cov, np.cov(x.numpy().T), rtol=1e-9, atol=1e-9)


def test_inception_score_of_known_predictions() -> None:
    def score(p: Tensor, splits: int) -> tuple[float, float]:
        streamed = InceptionScore(len(p), splits, p.shape[1])
        for k, part in enumerate(p.split(8)):
            streamed.add(part, 8 * k)
        return streamed.result()

    assert score(torch.full((60, 6), 1 / 6), 5) == pytest.approx((1, 0))
    assert score(torch.eye(6).repeat(10, 1), 5) == pytest.approx((6, 0))
    p = normal(103, 6).softmax(1)  # 103 images in 10 blocks: of 10 and of 11
    blocks = [p[i * 103 // 10 : (i + 1) * 103 // 10].numpy() for i in range(10)]
    want = [np.exp((x * np.log(x / x.mean(0))).sum(1).mean()) for x in blocks]
    assert score(p, 10) == pytest.approx((np.mean(want), np.std(want)), rel=1e-12)


def test_to_uint8_truncates() -> None:
    x = torch.tensor([-2, -1, 0, 0.999, 1, 2, torch.nan]).view(1, 1, 1, -1)
    assert to_uint8(x).flatten().tolist() == [0, 0, 127, 254, 255, 255, 0]
    assert to_uint8(torch.tensor([0.5]).bfloat16()).item() == 191  # 191.25, which bfloat16 has not


# ---- Inception -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def complete() -> dict[str, Tensor]:
    """A complete state dict of pytorch-fid's network with random weights that neither vanish nor explode."""
    from pytorch_fid import inception as fid
    from torchvision.models import Inception3

    with patch.object(fid, "load_state_dict_from_url"), patch.object(Inception3, "load_state_dict"):
        net = fid.fid_inception_v3()
    random = stream(0, "weights")
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=random)
        elif isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                torch.nn.init.uniform_(tensor, low, low + 1, generator=random)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5, generator=random)
    return net.state_dict()


@pytest.fixture(scope="module")
def lower(complete: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Options of an evaluator by the first block of such a network, 64 features."""
    path = tmp_path_factory.mktemp("lower") / "net.pth"
    torch.save({k: v for k, v in complete.items() if k.startswith(("Conv2d_1a", "Conv2d_2"))}, path)
    return {"weights": path, "fid_dims": 64, "want_is": False}


def pytorch_fid_features(state: dict[str, Tensor], images: Tensor, dims: tuple[int, ...]) -> list[Tensor]:
    from pytorch_fid import inception as fid

    with patch.object(fid, "load_state_dict_from_url", lambda *_, **__: state):
        net = fid.InceptionV3([fid.InceptionV3.BLOCK_INDEX_BY_DIM[d] for d in dims]).eval()
    with torch.no_grad():
        return [block.mean((2, 3)) for block in net(images / 255)]


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.slow
@real_network
def test_features_of_the_real_network_are_pytorch_fids(complete: dict[str, Tensor]) -> None:
    state = complete | {k: v.float() for k, v in torch.load(PARTIAL, weights_only=True).items()}
    images = pictures(1, size=32)
    for theirs in pytorch_fid_features(state, images, (64, 192, 768)):
        ours, logits = Inception(PARTIAL, theirs.shape[1], False)(images)
        assert logits is None
        assert_near(ours, theirs)


def test_the_complete_network_is_pytorch_fids_and_its_logits_have_no_bias(complete: dict[str, Tensor], tmp_path: Path) -> None:
    images, file = pictures(1, size=32), tmp_path / "complete.pth"
    torch.save(complete, file)
    theirs = pytorch_fid_features(complete, images, (192, 2048))
    net, narrow, no_is = Inception(file, 2048, True), Inception(file, 192, True), Inception(file, 192, False)
    features, logits = net(images)
    assert_near(features, theirs[1])
    assert_near(logits, theirs[1] @ complete["fc.weight"].T)
    assert_near(narrow(images)[0], theirs[0])  # narrower features, and still the logits
    assert not any(p.requires_grad for p in net.parameters())
    assert "fc" not in no_is.layers
    assert net.digest != narrow.digest == no_is.digest


@real_network
@pytest.mark.parametrize(("dims", "want_is"), [(2048, False), (768, True)])
def test_a_partial_file_names_what_it_lacks(dims: int, want_is: bool) -> None:
    with pytest.raises(UserError, match=r"Mixed_7b, Mixed_7c, fc\b.*--fid-dims 768"):
        Inception(PARTIAL, dims, want_is)


def test_files_that_are_not_the_network_are_refused(tmp_path: Path, complete: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.pth"
    first = {k: v for k, v in complete.items() if k.startswith(("Conv2d_1a", "Conv2d_2"))}
    for content, *parts in (
        (None,),
        (b"text",),
        (pickle.dumps(Path("x"), protocol=2),),
        ([1, 2],),
        ({"step": 3},),
        (first | {"AuxLogits.fc.bias": torch.zeros(1)}, "AuxLogits.fc.bias"),
        (first | {"Conv2d_2b_3x3.bn.bias": torch.zeros(3)}, "Conv2d_2b_3x3.bn.bias", "(3,)", "(64,)"),
        ({k: v for k, v in first.items() if k != "Conv2d_2a_3x3.bn.bias"}, "Conv2d_2a_3x3"),
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(UserError) as error:
            Inception(path, 64, False)
        assert "\n" not in str(error.value)
        assert all(part in str(error.value) for part in (f"--inception-weights {path}", *parts)), error.value


def test_without_network_or_pytorch_fid_the_compact_evaluator_is_named(complete: dict[str, Tensor]) -> None:
    with (
        patch("torch.hub.load_state_dict_from_url", side_effect=URLError("no route")),
        pytest.raises(UserError, match=r"6726825d.pth.*no route.*--inception-weights.*--evaluator compact"),
    ):
        Inception(None, 64, False)
    with (
        patch.dict("sys.modules", {"pytorch_fid": None}),
        pytest.raises(UserError, match=r"pytorch_fid.*pip install.*--evaluator compact"),
    ):
        Inception(None, 64, False)
    with patch("torch.hub.load_state_dict_from_url", return_value=complete) as download:
        assert Inception(None, 64, False).layers["Conv2d_1a_3x3"].conv.bias is not None  # BatchNorm is folded in
    assert download.call_args.kwargs["weights_only"] is True


@pytest.mark.slow
@real_network
def test_real_images_through_the_real_network(tmp_path: Path) -> None:
    files = [REAL_DATA / f"cifar10_{part}.npz" for part in ("train", "test")]
    if not all(file.exists() for file in files):
        pytest.skip(f"no CIFAR-10 in {REAL_DATA}")
    train, test = (torch.from_numpy(np.load(file)["images"][:40]).permute(0, 3, 1, 2) for file in files)
    data = SimpleNamespace(name="cifar10_train", images=train, labels=None, digest="")
    evaluator = ready("inception", data, tmp_path, weights=PARTIAL, fid_dims=64, want_is=False, batch=20)
    assert (evaluator.net, evaluator.label, evaluator.ref) == ("inception-64", "FID-64", "cifar10_train 40")
    same, like, unlike = (evaluator.score(batches(images, 20), 40).fid for images in (train, test, 255 - test))
    assert same == pytest.approx(0, abs=1e-6)
    assert 0 < like < 0.5 < unlike


# ---- compact ---------------------------------------------------------------------------------------------------------


def test_compact_learns_and_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "COMPACT_STEPS", (30, 30))
    data, before, said = classes(), torch.get_rng_state(), []
    one = metrics.train_compact(data.images, data.labels, CPU, said.append, lambda: None)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    two = metrics.train_compact(data.images, data.labels, CPU, said.append, lambda: None)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    fresh = classes(90, seed=5)
    features, logits = one(fresh.images)
    assert features.shape == (90, 128)
    assert (logits.argmax(1) == fresh.labels).float().mean() > 0.9
    assert "30 of 30" in said[0]
    assert not one.training
    assert not any(p.requires_grad for p in one.parameters())


def test_compact_leaves_out_what_has_no_label(tmp_path: Path) -> None:
    data = classes()
    data.labels = torch.where(data.labels == 0, -1, 5 * data.labels)
    with patch.object(metrics, "train_compact", wraps=metrics.train_compact) as train:
        evaluator = ready("compact", data, tmp_path)
    images, labels = train.call_args.args[:2]
    assert torch.equal(images, data.images[data.labels > 0])
    assert torch.equal(labels, data.labels[data.labels > 0] // 10)
    assert evaluator.network.classes == 2


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_an_evaluator_scores(tmp_path: Path) -> None:
    data, noisy = classes(), pictures(300, seed=3)
    evaluator = ready("compact", data, tmp_path, splits=5)
    assert evaluator.score(batches(data.images), 300).fid == pytest.approx(0, abs=1e-6)
    assert evaluator.score(batches(data.images), 250).n == 250  # the last batch is cut
    noise = evaluator.score(batches(noisy), 300)
    assert noise.fid > 1e-3
    reference = InceptionScore(300, 5, 3)
    reference.add(evaluator.network(noisy)[1].double().softmax(1), 0)
    assert (noise.is_mean, noise.is_std) == pytest.approx(reference.result(), rel=1e-6)
    row = {"eval/fid": noise.fid, "eval/is": noise.is_mean, "eval/is_std": noise.is_std}
    assert noise.row() == row | {"eval/n": 300, "eval/net": "compact", "eval/ref": "colours 300"}
    collapsed = evaluator.score(lambda k: torch.zeros(100, 3, 8, 8, dtype=torch.uint8), 300)
    assert collapsed.fid > 0
    assert collapsed.is_mean == pytest.approx(1)
    broken = evaluator.score(lambda k: to_uint8(torch.full((100, 3, 8, 8), torch.nan)), 300)
    assert broken == collapsed  # NaN is black
    evaluator.network.head.bias.fill_(torch.nan)
    evaluator.network.body[-2].bias.fill_(torch.inf)
    score = evaluator.score(batches(data.images), 300)  # features that are not finite
    assert np.isnan([score.fid, score.is_mean, score.is_std]).all()


def test_scores_without_inception_score_and_of_few_images(tmp_path: Path) -> None:
    images = classes().images
    evaluator = ready("compact", classes(), tmp_path, want_is=False)
    score = evaluator.score(batches(images), 5)
    assert (score.is_mean, score.is_std) == (None, None)
    assert np.isnan(evaluator.score(batches(images), 1).fid)
    for wrong in (torch.zeros(100, 3, 8, 8), images[:50]):  # a sampler that breaks its promise
        with pytest.raises(ValueError, match=r"sample\(0\).*100"):
            evaluator.score(lambda k, wrong=wrong: wrong, 300)
    evaluator.want_is = True
    with pytest.raises(UserError, match=r"\b5\b.*\b10\b"):
        evaluator.score(batches(images), 5)


def test_the_reference_is_a_fixed_choice_of_images(tmp_path: Path) -> None:
    one, two = (ready("compact", classes(), tmp_path / folder, ref_n=40) for folder in ("a", "b"))
    assert one.ref == "colours 40"
    assert torch.equal(one.reference["mean"], two.reference["mean"])
    images = classes().images[torch.randperm(300, generator=stream(0, "reference"))[:40]]
    torch.testing.assert_close(one.reference["mean"], one.network(images)[0].double().mean(0))


def test_bad_choices_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for ref_n in (-1, 1, 301):
        with pytest.raises(UserError, match=f"--ref-n {ref_n}.*colours.*300"):
            Evaluator("compact", CPU, tmp_path, ref_n=ref_n).use(classes())
    for labels in (None, torch.zeros(300, dtype=torch.int64), torch.where(torch.arange(300) % 3 == 1, 1, -1)):
        unlabelled = SimpleNamespace(name="colours", images=pictures(300), labels=labels)
        with pytest.raises(UserError, match=r"--evaluator compact.*colours.*--evaluator inception"):
            Evaluator("compact", CPU, tmp_path).use(unlabelled)
    with pytest.raises(UserError, match=r"--evaluator foo.*inception.*compact"):
        Evaluator("foo", CPU, tmp_path)
    with pytest.raises(UserError, match=r"--fid-dims 100.*64, 192, 768, 2048"):
        Evaluator("inception", CPU, tmp_path, fid_dims=100)
    with pytest.raises(UserError, match=r"file.*--data-dir"):
        ready("compact", classes(), tmp_path / "file")


def test_the_cache_is_read_keyed_and_mended(tmp_path: Path) -> None:
    said: list[str] = []

    def score(data: SimpleNamespace, **options: int) -> tuple[Score, list[str]]:
        """A score with this data and options, and what was computed and written for it."""
        before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
        found = ready("compact", data, tmp_path, said.append, **options).score(batches(classes().images), 300)
        return found, sorted(f.name.split("-")[0] for f in tmp_path.iterdir() if before.get(f) != f.stat().st_mtime_ns)

    first, new = score(classes())
    assert new == ["compact", "reference"]
    files = sorted(tmp_path.iterdir())
    assert score(classes()) == (first, [])
    assert score(classes(), ref_n=50)[1] == ["reference"]
    assert score(classes(digest="two"))[1] == ["compact", "reference"]
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    said.clear()
    assert score(classes()) == (first, ["compact", "reference"])
    assert [any(str(file) in line for line in said) for file in files] == [True, True]
    assert score(classes()) == (first, [])


@pytest.mark.parametrize(("calls", "written"), [(2, []), (11, ["compact"])])  # in the training, in the reference statistics
def test_stopping_leaves_nothing_half_written(calls: int, written: list[str], tmp_path: Path) -> None:
    def check() -> None:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ready("compact", classes(), tmp_path, check=check)
    assert [file.name.split("-")[0] for file in tmp_path.iterdir()] == written


def test_features_are_made_without_tf32_and_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator, seen = ready("compact", classes(), tmp_path), []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    forward, images = evaluator.network.forward, classes().images[:100]

    def network(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(torch.backends.cudnn.allow_tf32)
        return forward(images)

    evaluator.network.forward = network
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = evaluator._apply(images)
    assert features.dtype == torch.float32
    with pytest.raises(AttributeError):
        evaluator._apply(None)
    assert seen == [False, False]
    assert torch.backends.cudnn.allow_tf32
    on_cpu = evaluator._key(10)
    evaluator.device = torch.device("cuda")
    assert evaluator._key(10) == on_cpu.replace("cpu", "cuda, float32")


def test_scores_in_tf32_and_their_caches_are_named_apart(tmp_path: Path, lower: dict, monkeypatch) -> None:
    """Made as on a GPU, then used on the CPU, which has no TF32."""
    data, images, seen = SimpleNamespace(name="x", images=pictures(20), labels=None, digest="x"), pictures(20, 1), []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    monkeypatch.setattr(Inception, "to", lambda self, *_, **__: self)
    forward, found = Inception.forward, {}

    def spy(self: Inception, images: Tensor) -> tuple[Tensor, None]:
        seen.append(torch.backends.cudnn.allow_tf32)
        return forward(self, images)

    monkeypatch.setattr(Inception, "forward", spy)
    for precision in ("float32", "tf32", "float32"):
        evaluator = Evaluator("inception", "cuda", tmp_path, batch=20, precision=precision, **lower)
        evaluator.use(data)
        key = evaluator._key(20)
        assert key.endswith(f"device cuda, {precision}")
        evaluator.device = CPU
        evaluator.prepare()
        found[key] = evaluator.score(batches(images, 20), 20)
    assert seen == [False, False, True, True, False]  # the last took the first one's reference statistics
    assert [s.row()["eval/net"] for s in found.values()] == ["inception-64", "inception-64-tf32"]
    assert [str(s).split()[0] for s in found.values()] == ["FID-64", "FID-64-tf32"]
    assert sorted(file.name.rpartition("-")[0] for file in tmp_path.glob("*.pt")) == [
        "reference-inception-64", "reference-inception-64-tf32",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "precision"), [("inception", "tf32"), ("compact", "tf32"), ("inception", "bf16")])
def test_a_precision_that_cannot_be_had_is_refused(name: str, precision: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^--fid-precision {precision}: .*(cpu; omit it|one of float32, tf32)$"):
        Evaluator(name, CPU, tmp_path, precision=precision)


MORE = ("kid", "pr", "dc", "fid-inf", "nearest")
KEYS = ["kid", "kid_se", "precision", "recall", "density", "coverage", "fid_inf"]


def test_further_scores_are_those_of_the_features(tmp_path: Path) -> None:
    data, fake = classes(600), classes(600, seed=4).images // 3 * 2
    plain = ready("compact", data, tmp_path).score(batches(fake), 600)
    evaluator = ready("compact", data, tmp_path, more=MORE)
    assert evaluator.score(batches(fake), 600) == plain  # not asked for: as in training
    found = evaluator.score(batches(fake), 600, more=True)
    assert (found.fid, found.is_mean, found.is_std) == (plain.fid, plain.is_mean, plain.is_std)
    real, features = (evaluator.network(images)[0] for images in (data.images, fake))
    assert list(found.more) == KEYS
    assert (found.more["kid"], found.more["kid_se"]) == pytest.approx(scores.kid(real, features), rel=1e-4)
    assert {k: found.more[k] for k in KEYS[2:6]} == scores.neighbourhoods(real, features)
    assert 0 < found.more["fid_inf"] < found.fid
    assert [key for key in found.row() if key not in plain.row()] == [f"eval/{key}" for key in KEYS]
    assert str(found).count("(compact)") == 2 + len(KEYS) - 1  # an error has no name of its own
    only = ready("compact", data, tmp_path, more=("fid", "is", "dc")).score(batches(fake), 600, more=True)
    assert list(only.more) == ["density", "coverage"]


def test_fid_at_infinity_of_the_same_gaussian_is_nearer_to_0() -> None:
    d, n = 16, 1000
    one = torch.eye(d, dtype=torch.float64)
    real = {"mean": torch.zeros(d, dtype=torch.float64), "cov": one, "root": one}
    evaluator = SimpleNamespace(reference=real, device=CPU, check=lambda: None)
    found, plain = [], []
    for seed in range(10):
        x = normal(n, d, seed=seed)
        found.append(Evaluator._fid_infinity(evaluator, x))
        plain.append(frechet_distance(real["mean"], one, x.mean(0), x.T.cov(), one))
    assert np.mean(plain) > 0.05  # the bias of so few images
    assert abs(np.mean(found)) < 0.1 * np.mean(plain)


def test_further_scores_of_images_that_cannot_be_scored(tmp_path: Path) -> None:
    evaluator = ready("compact", classes(), tmp_path, more=MORE)
    collapsed = evaluator.score(lambda k: torch.zeros(100, 3, 8, 8, dtype=torch.uint8), 600, more=True).more
    assert np.isfinite(list(collapsed.values())).all()
    assert collapsed["recall"] == 0
    few = evaluator.score(batches(pictures(12)), 12, more=True).more
    assert [key for key in KEYS if np.isnan(few[key])] == ["kid", "kid_se", "fid_inf"]
    evaluator.network.body[-2].bias.fill_(torch.nan)
    broken = evaluator.score(batches(pictures(600)), 600, more=True)
    assert all(np.isnan(value) for value in broken.more.values())
    assert evaluator.nearest(pictures(2), 3).shape == (2, 4, 3, 8, 8)


def test_the_nearest_real_images_of_copies_are_their_originals(tmp_path: Path) -> None:
    data = classes()
    evaluator = ready("compact", data, tmp_path, more=("nearest",), ref_n=200)
    shown = evaluator.nearest(pictures(5), 3)
    assert torch.equal(shown[:, 0], pictures(5))
    kept = data.images[evaluator._order(200)]
    found = evaluator.nearest(kept[-4:], 2)
    assert torch.equal(found[:, 0], found[:, 1])


def test_features_are_kept_once_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "FEATURES_KEPT", 120)
    said: list[str] = []
    first = ready("compact", classes(), tmp_path, more=("dc", "nearest"), log=said.append)
    assert first._real_features().shape == (120, 128)
    assert first.nearest(pictures(1), 2).shape[1] == 3
    assert sum("120 x 128" in line for line in said) == 1
    ready("compact", classes(), tmp_path, more=("dc", "nearest"), log=said.append).score(batches(pictures(300)), 300, more=True)
    assert sum("120 x 128" in line for line in said) == 1


def test_other_images_are_compared_by_the_same_network(tmp_path: Path) -> None:
    evaluator = ready("compact", classes(), tmp_path, more=("dc",))
    unlike = classes(90, seed=7, digest="other")
    unlike.images, unlike.name, unlike.labels = 255 - unlike.images, "others", None
    other = evaluator.against(unlike)
    assert other.network is evaluator.network
    assert other.ref == "others 90"
    found = other.score(batches(unlike.images), 90, more=True)
    assert found.fid == pytest.approx(0, abs=1e-6)
    assert found.more["coverage"] == 1
    assert evaluator.score(batches(unlike.images), 90).fid > 0.01


# ---- statistics of others --------------------------------------------------------------------------------------------


def statistics(d: int = 64) -> dict[str, np.ndarray]:
    x = normal(2 * d, d)
    return {"mu": x.mean(0).numpy(), "sigma": x.T.cov().numpy()}


@pytest.mark.parametrize("d", [64, 2048])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_statistics_of_others_are_read(d: int, kind: type, tmp_path: Path) -> None:
    mu, sigma = normal(d).numpy().astype(kind), np.eye(d, dtype=kind)
    for mean in (mu, mu[None]):  # pytorch-fid's and TensorFlow's layout
        np.savez(tmp_path / "x.npz", mu=mean, sigma=sigma)
        found = metrics.read_stats(tmp_path / "x.npz", d)
        assert torch.equal(found["mean"], torch.from_numpy(mu).double())
        assert torch.equal(found["cov"], torch.eye(d, dtype=torch.float64))


@pytest.mark.parametrize(
    "change",
    [
        {"mu": np.zeros(3)}, {"mu": np.zeros((2, 64))}, {"sigma": np.eye(64)[:, :3]}, {"sigma": np.triu(np.ones((64, 64)))},
        {"mu": np.full(64, np.nan)}, {"sigma": np.full((64, 64), np.inf)}, {"sigma": -np.eye(64)},
        {"mu": np.zeros(64, int)}, {"mu": np.array([None] * 64)}, {"mu": np.zeros(32), "sigma": np.eye(32)},
    ],
)  # fmt: skip
def test_statistics_that_cannot_be_right_are_refused(change: dict, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **(statistics() | change))
    with pytest.raises(UserError, match=rf"--fid-stats {path}"):
        metrics.read_stats(path, 64)
    with pytest.raises(UserError, match=r"--fid-stats"):
        metrics.read_stats(tmp_path / "none.npz")
    np.savez(path, images=np.zeros(3))
    with pytest.raises(UserError, match=r"mu and sigma.*images"):
        metrics.read_stats(path)


def test_the_fid_against_statistics_of_others(tmp_path: Path, lower: dict) -> None:
    file, options = tmp_path / "x.npz", lower | {"batch": 10}
    own = ready("inception", classes(20), tmp_path / "cache", **options)
    np.savez(file, mu=own.reference["mean"].numpy(), sigma=own.reference["cov"].numpy())
    other = classes(20, seed=3, digest="other")
    given = ready("inception", other, tmp_path / "cache", stats=file, **options)
    fake = batches(pictures(20), 10)
    assert given.score(fake, 20).fid == pytest.approx(own.score(fake, 20).fid, rel=1e-9)
    assert given.ref == "x.npz"
    other.images = other.images[:, :, ::2, ::2]  # a stage of a search at half the size: its own images
    other.digest = "half"
    given.use(other)
    given.prepare()
    assert given.ref == "colours 20"
    with pytest.raises(UserError, match=r"--fid-stats.*--evaluator inception"):
        Evaluator("compact", CPU, tmp_path, stats=file)


def test_statistics_and_images_against_each_other(tmp_path: Path, lower: dict) -> None:
    """Either side may be statistics, of which nothing but a FID can be computed."""
    for name, seed in (("a", 0), ("b", 3)):
        np.savez(tmp_path / f"{name}.npz", images=pictures(20, seed, 16).permute(0, 2, 3, 1).numpy())
        data = load_dataset(str(tmp_path / f"{name}.npz"), tmp_path)
        own = ready("inception", data, tmp_path, **lower).reference
        np.savez(tmp_path / f"stats-{name}.npz", mu=own["mean"].numpy(), sigma=own["cov"].numpy())

    def fid(a: str, b: str, **more: object) -> metrics.Score:
        sides = (str(tmp_path / f"{name}.npz") for name in (a, b))
        return metrics.compare(*sides, {"name": "inception"} | lower | more, tmp_path, "cpu")

    whole = fid("a", "b")
    assert whole.fid > 0.01
    for sides in (("a", "stats-b"), ("stats-a", "b"), ("stats-a", "stats-b")):
        found = fid(*sides)
        assert (found.fid, found.n) == (pytest.approx(whole.fid, rel=1e-4), 0 if sides == ("stats-a", "stats-b") else 20)
        with pytest.raises(UserError, match=r"--metrics.*kid"):
            fid(*sides, more=["fid", "kid"])
    assert found.ref == str(tmp_path / "stats-b.npz")
    with pytest.raises(UserError, match="64"):
        fid("stats-a", "stats-b", fid_dims=192)


def score_on_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)  # as in the process that spawns the other: equal to the last bit
    minute = timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", minute, world_size=2, rank=rank)
    evaluator = ready("compact", classes(), folder / "cache", splits=4, batch=64, more=MORE)
    torch.save(vars(evaluator.score(batches(pictures(250, seed=3), 64), 250, rank, 2, True)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_score_as_one(tmp_path: Path) -> None:
    evaluator = ready("compact", classes(), tmp_path / "cache", splits=4, batch=64, more=MORE)
    alone = evaluator.score(batches(pictures(250, seed=3), 64), 250, more=True)
    mp.spawn(score_on_rank, (tmp_path,), nprocs=2)
    one, two = (Score(**torch.load(tmp_path / f"{rank}.pt", weights_only=True)) for rank in (0, 1))
    assert str(one) == str(two)  # FID∞ of so few images is NaN, which equals nothing
    assert one.more == pytest.approx(alone.more, rel=1e-6, nan_ok=True)
    for field in ("fid", "is_mean", "is_std"):
        assert getattr(one, field) == pytest.approx(getattr(alone, field), rel=1e-6)


def test_a_compact_score_names_its_network() -> None:
    assert str(Score(1.0, 2.0, 0.1, 10, "compact", "x")).count("(compact)") == 2
    assert "compact" not in str(Score(1.0, 2.0, 0.1, 10, "inception-2048", "x"))


def test_a_cache_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    """The folder becomes a file as soon as the training begins."""
    folder, said = tmp_path / "cache", []

    def log(line: str) -> None:
        said.append(line)
        if folder.is_dir():
            folder.rmdir()
            folder.touch()

    evaluator = ready("compact", classes(), folder, log)
    assert evaluator.score(batches(classes().images), 300).fid == pytest.approx(0, abs=1e-6)
    assert sum(str(folder) in line for line in said) == 3  # where it would be cached; that neither of two files can be


@pytest.mark.parametrize("folder", ["file/cache", "/proc/self"])
def test_that_the_cache_cannot_be_written_is_known_before_hours_of_work(folder: str, tmp_path: Path) -> None:
    """A folder that cannot be made, and one in which nobody can write."""
    done: list[str] = []
    (tmp_path / "file").touch()
    evaluator = Evaluator("compact", CPU, tmp_path / folder)
    evaluator.log = lambda line: done.append(f"told {folder in line}")
    evaluator._cached("kind", "key", lambda: done.append("made") or {})
    assert done == ["told True", "made"]


def test_a_broken_file_in_the_hubs_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / metrics.FID_FILE
    path.write_bytes(b"<html>Please log in</html>")
    with pytest.raises(UserError) as caught:
        metrics._download(f"http://localhost:9/{metrics.FID_FILE}")
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rank", [48, 12])
def test_frechet_distance_of_commuting_covariances(rank: int) -> None:
    a, b = torch.rand(2, 48, dtype=torch.float64, generator=stream(2))
    a[rank:] = b[rank:] = 0
    mu = torch.zeros(48)
    want = 48 + (a.sqrt() - b.sqrt()).square().sum().item()
    for basis in (torch.linalg.qr(normal(48, 48))[0], torch.eye(48, dtype=torch.float64)):
        cov1, cov2 = (basis * a) @ basis.T, (basis * b) @ basis.T
        assert frechet_distance(mu, cov1, mu + 1, cov2) == pytest.approx(want, rel=1e-6)
    cov = covariance(48, 1e6)
    assert frechet_distance(mu, cov, mu, cov) == pytest.approx(0, abs=1e-9)
