"""The metrics against pytorch-fid, numpy, closed forms, and everything that can be wrong with files and data."""

import os
import pickle
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from common import metrics
from common.files import UserError, stream
from common.metrics import (
    Evaluator,
    Inception,
    InceptionScore,
    Moments,
    Score,
    frechet_distance,
    matrix_root,
    to_uint8,
    train_compact,
)

DATA = Path(os.environ.get("GAN_NAS_DATA", Path(__file__).parents[2] / "shared/data"))
PARTIAL = DATA / "inception-2015-12-05-upto-Mixed_7a.pth"
pytestmark = pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated")  # pytorch-fid's call of scipy
real_network = pytest.mark.skipif(not PARTIAL.exists(), reason=f"no {PARTIAL}")
CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=stream(seed, "test"))


def pictures(n: int, seed: int = 0, size: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=stream(seed, "pictures"))


def classes(n: int = 300, digest: str = "one") -> SimpleNamespace:
    """Three classes of 8x8 pictures: noise around red, green and blue."""
    labels = torch.arange(n) % 3
    images = pictures(n) // 2
    images[torch.arange(n), labels] += 100
    return SimpleNamespace(name="colours", images=images, labels=labels, digest=digest)


def batches(images: torch.Tensor, size: int = 100):
    return lambda k: images[k * size : (k + 1) * size]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Ten compact training steps: enough for all but the test of what it learns."""
    monkeypatch.setattr(metrics, "COMPACT_STEPS", (10, 10))


# ---------------------------------------------------------------------------------------------------- statistics


def covariance(d: int, condition: float, seed: int = 0) -> torch.Tensor:
    basis = torch.linalg.qr(normal(d, d, seed=seed))[0]
    values = torch.logspace(0, -np.log10(condition), d, dtype=torch.float64)
    return (basis * values) @ basis.T


@pytest.mark.parametrize("condition", [10.0, 1e6])
def test_frechet_distance_is_pytorch_fids(condition):
    from pytorch_fid.fid_score import calculate_frechet_distance

    mu1, mu2 = normal(48), normal(48, seed=1)
    cov1, cov2 = covariance(48, condition), covariance(48, condition, seed=1)
    want = calculate_frechet_distance(mu1.numpy(), cov1.numpy(), mu2.numpy(), cov2.numpy())
    assert frechet_distance(mu1, cov1, mu2, cov2) == pytest.approx(want, rel=1e-6)
    assert frechet_distance(mu1, cov1, mu2, cov2, matrix_root(cov1)) == pytest.approx(want, rel=1e-6)
    # The distance of the covariances alone, which the means could drown.
    want = calculate_frechet_distance(mu1.numpy(), cov1.numpy(), mu1.numpy(), cov2.numpy())
    assert frechet_distance(mu1, cov1, mu1, cov2) == pytest.approx(want, rel=1e-6)


def test_frechet_distance_of_fewer_images_than_features_is_pytorch_fids():
    from pytorch_fid.fid_score import calculate_frechet_distance

    x, y = normal(20, 48).numpy(), 1.5 * normal(30, 48, seed=1).numpy()
    mu1, cov1, mu2, cov2 = x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T)
    want = calculate_frechet_distance(mu1, cov1, mu2, cov2)
    assert frechet_distance(*map(torch.from_numpy, (mu1, cov1, mu2, cov2))) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("rank", [48, 12])
def test_frechet_distance_of_commuting_covariances(rank):
    basis = torch.linalg.qr(normal(48, 48))[0]
    a, b = torch.rand(2, 48, dtype=torch.float64, generator=stream(2))
    a[rank:] = b[rank:] = 0
    cov1, cov2 = (basis * a) @ basis.T, (basis * b) @ basis.T
    mu = torch.zeros(48)
    want = (a.sqrt() - b.sqrt()).square().sum().item()
    assert frechet_distance(mu, cov1, mu + 1, cov2) - 48 == pytest.approx(want, rel=1e-6)


def test_frechet_distance_of_diagonal_gaussians():
    one = torch.ones(1, 1)
    assert frechet_distance(torch.zeros(1), 4 * one, torch.tensor([3.0]), 25 * one) == pytest.approx(9 + (5 - 2) ** 2)
    mu, std1, std2 = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.5])
    want = (std1 - std2).square().sum().item()
    assert frechet_distance(mu, std1.square().diag(), mu, std2.square().diag()) == pytest.approx(want)


def test_frechet_distance_to_itself_is_zero():
    cov = covariance(48, 1e6)
    assert frechet_distance(normal(48), cov, normal(48), cov) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e200])
def test_frechet_distance_of_what_is_not_finite_is_nan(bad):
    mu, cov = torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    broken = cov.clone()
    broken[1, 2] = broken[2, 1] = bad
    assert np.isnan(frechet_distance(mu, cov, mu, broken * broken))
    assert np.isnan(frechet_distance(mu, broken * broken, mu, cov))
    assert np.isnan(frechet_distance(mu, cov, (mu + bad) ** 2, cov))


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_moments_are_numpys(batch):
    x = normal(100, 5) + 1e6  # naive sums of squares would lose twelve digits to this mean
    moments = Moments(5)
    for part in x.split(batch):
        moments.add(part)
    assert moments.n == 100
    np.testing.assert_allclose(moments.mean, x.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.cov, np.cov(x.numpy().T), rtol=1e-9, atol=1e-9)


def test_inception_score_of_known_predictions():
    def score(p: torch.Tensor, splits: int) -> tuple[float, float]:
        streamed = InceptionScore(len(p), splits, p.shape[1])
        for k, part in enumerate(p.split(8)):
            streamed.add(part, 8 * k)
        return streamed.result()

    assert score(torch.full((60, 6), 1 / 6), 5) == pytest.approx((1, 0))
    assert score(torch.eye(6).repeat(10, 1), 5) == pytest.approx((6, 0))
    p = normal(103, 6).softmax(1)  # 103 images in 10 blocks: of 10 and of 11
    want = []
    for i in range(10):
        part = p.numpy()[i * 103 // 10 : (i + 1) * 103 // 10]
        kl = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        want.append(np.exp(kl.sum(1).mean()))
    assert score(p, 10) == pytest.approx((np.mean(want), np.std(want)), rel=1e-12)


def test_to_uint8_truncates():
    x = torch.tensor([-2, -1, 0, 0.999, 1, 2, torch.nan]).view(1, 1, 1, -1)
    assert to_uint8(x).flatten().tolist() == [0, 0, 127, 254, 255, 255, 0]
    assert to_uint8(torch.tensor([0.5]).bfloat16()).item() == 191  # 191.25, which bfloat16 has not


# ---------------------------------------------------------------------------------------------------- Inception


@pytest.fixture(scope="module")
def complete_state():
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
def complete_file(complete_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "complete.pth"
    torch.save(complete_state, path)
    return path


def pytorch_fid_features(state: dict, images: torch.Tensor, dims: tuple[int, ...]) -> list[torch.Tensor]:
    from pytorch_fid import inception as fid

    with patch.object(fid, "load_state_dict_from_url", lambda *_, **__: state):
        net = fid.InceptionV3([fid.InceptionV3.BLOCK_INDEX_BY_DIM[d] for d in dims]).eval()
    with torch.no_grad():
        return [block.mean((2, 3)) for block in net(images / 255)]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


@real_network
def test_features_of_the_real_network_are_pytorch_fids(complete_state):
    state = complete_state | {k: v.float() for k, v in torch.load(PARTIAL, weights_only=True).items()}
    images = pictures(2, size=32)
    for dims, theirs in zip((64, 192, 768), pytorch_fid_features(state, images, (64, 192, 768)), strict=True):
        ours, logits = Inception(PARTIAL, dims, False)(images)
        assert logits is None
        close(ours, theirs)


def test_complete_network_is_pytorch_fids_and_its_logits_have_no_bias(complete_state, complete_file):
    images = pictures(2, size=32)
    theirs = pytorch_fid_features(complete_state, images, (192, 2048))
    net = Inception(complete_file, 2048, True)
    features, logits = net(images)
    close(features, theirs[1])
    close(logits, theirs[1] @ complete_state["fc.weight"].T)
    assert not any(p.requires_grad for p in net.parameters())
    assert "fc" not in Inception(complete_file, 2048, False).layers
    close(Inception(complete_file, 192, True)(images)[0], theirs[0])  # narrower features, and still the logits
    assert net.digest != Inception(complete_file, 192, True).digest == Inception(complete_file, 192, False).digest


@real_network
@pytest.mark.parametrize(("dims", "want_is"), [(2048, False), (768, True)])
def test_partial_file_names_what_it_lacks(dims, want_is):
    with pytest.raises(UserError, match=r"Mixed_7b, Mixed_7c, fc: .*--fid-dims 768 .*IS out of --objectives"):
        Inception(PARTIAL, dims, want_is)


def test_files_that_are_not_the_network(tmp_path, complete_state):
    def refused(content: object, reason: str) -> None:
        path = tmp_path / "weights.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(UserError, match=f"not the FID Inception network: .*{reason}") as error:
            Inception(path, 64, False)
        assert "\n" not in str(error.value)

    first = {k: v for k, v in complete_state.items() if k.startswith(("Conv2d_1a", "Conv2d_2"))}
    with pytest.raises(UserError, match="no such file"):
        Inception(tmp_path / "nowhere.pth", 64, False)
    refused(b"text", "not a file of tensors")
    refused(pickle.dumps(Path("x"), protocol=2), "not a file of tensors")
    refused([1, 2], "not a state dict")
    refused({"step": 3}, "not a state dict")
    refused(first | {"AuxLogits.fc.bias": torch.zeros(1)}, "unknown entry 'AuxLogits.fc.bias'")
    refused(first | {"Conv2d_2b_3x3.bn.bias": torch.zeros(3)}, r"Conv2d_2b_3x3.bn.bias is \(3,\), not \(64,\)")
    refused({k: v for k, v in first.items() if k != "Conv2d_2a_3x3.bn.bias"}, "no Conv2d_2a_3x3, ")


def test_no_network_and_no_pytorch_fid():
    with (
        patch("torch.hub.load_state_dict_from_url", side_effect=URLError("no route")),
        pytest.raises(UserError, match=r"no download of .*6726825d.pth .*--inception-weights FILE.*--evaluator compact"),
    ):
        Inception(None, 64, False)
    with (
        patch.dict("sys.modules", {"pytorch_fid": None}),
        pytest.raises(UserError, match=r"pytorch_fid is not installed: pip install .*--evaluator compact"),
    ):
        Inception(None, 64, False)


def test_downloaded_network_is_used(complete_state):
    with patch("torch.hub.load_state_dict_from_url", return_value=complete_state) as download:
        assert Inception(None, 64, False).layers["Conv2d_1a_3x3"].conv.bias is not None  # BatchNorm is folded in
    assert download.call_args.kwargs["weights_only"] is True


def ready(name: str, data: SimpleNamespace, folder: Path, log=print, check=lambda: None, **options) -> Evaluator:
    """An evaluator of `data` that can score."""
    evaluator = Evaluator(name, CPU, folder, **options)
    evaluator.log, evaluator.check = log, check
    evaluator.use(data)
    evaluator.prepare()
    return evaluator


@pytest.mark.slow
@real_network
def test_real_images_through_the_real_network(tmp_path):
    train, test = DATA / "cifar10_train.npz", DATA / "cifar10_test.npz"
    if not (train.exists() and test.exists()):
        pytest.skip(f"no CIFAR-10 in {DATA}")
    train, test = (torch.from_numpy(np.load(f)["images"][:40]).permute(0, 3, 1, 2) for f in (train, test))
    data = SimpleNamespace(name="cifar10_train", images=train, labels=None, digest="")
    evaluator = ready("inception", data, tmp_path, weights=PARTIAL, fid_dims=64, want_is=False, batch=20)
    assert (evaluator.net, evaluator.label, evaluator.ref) == ("inception-64", "FID-64", "cifar10_train 40")
    assert evaluator.score(batches(train, 20), 40).fid == pytest.approx(0, abs=1e-6)
    like, unlike = evaluator.score(batches(test, 20), 40).fid, evaluator.score(batches(255 - test, 20), 40).fid
    assert 0 < like < 0.5 < unlike


# ---------------------------------------------------------------------------------------------------- compact


def test_compact_learns_and_repeats_itself(monkeypatch):
    monkeypatch.setattr(metrics, "COMPACT_STEPS", (30, 30))
    data, before, said = classes(), torch.get_rng_state(), []
    one = train_compact(data.images, data.labels, CPU, said.append, lambda: None)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    two = train_compact(data.images, data.labels, CPU, said.append, lambda: None)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    fresh = pictures(90, seed=5) // 2
    fresh[torch.arange(90), torch.arange(90) % 3] += 100
    features, logits = one(fresh)
    assert features.shape == (90, 128)
    assert (logits.argmax(1) == torch.arange(90) % 3).float().mean() > 0.9
    assert "30 of 30 held-out" in said[0]
    assert not one.training
    assert not any(p.requires_grad for p in one.parameters())


def test_compact_needs_labels(tmp_path):
    data = classes()
    for labels in (None, torch.zeros(300, dtype=torch.int64), torch.where(data.labels == 1, 1, -1)):
        data.labels = labels
        with pytest.raises(UserError, match=r"class, give the \.npz `labels`, or take --evaluator inception"):
            Evaluator("compact", CPU, tmp_path).use(data)


def test_compact_leaves_out_what_has_no_label(tmp_path):
    data = classes()
    data.labels = torch.where(data.labels == 0, -1, 5 * data.labels)
    with patch.object(metrics, "train_compact", wraps=train_compact) as train:
        evaluator = ready("compact", data, tmp_path)
    images, labels = train.call_args.args[:2]
    assert torch.equal(images, data.images[data.labels > 0])
    assert torch.equal(labels, data.labels[data.labels > 0] // 10)
    assert evaluator.network.classes == 2


# ---------------------------------------------------------------------------------------------------- evaluation


def test_evaluator_scores(tmp_path):
    data = classes()
    evaluator = ready("compact", data, tmp_path, splits=5)
    same = evaluator.score(batches(data.images), 300)
    assert same.fid == pytest.approx(0, abs=1e-6)
    assert evaluator.score(batches(data.images), 250).n == 250  # the last batch is cut
    noise = evaluator.score(batches(pictures(300, seed=3)), 300)
    assert noise.fid > 1e-3
    logits = evaluator.network(pictures(300, seed=3))[1].double()
    reference = InceptionScore(300, 5, 3)
    reference.add(logits.softmax(1), 0)
    assert (noise.is_mean, noise.is_std) == pytest.approx(reference.result(), rel=1e-6)
    assert noise.row() == {
        "eval/fid": noise.fid,
        "eval/is": noise.is_mean,
        "eval/is_std": noise.is_std,
        "eval/n": 300,
        "eval/net": "compact",
        "eval/ref": "colours 300",
    }
    collapsed = evaluator.score(lambda k: torch.zeros(100, 3, 8, 8, dtype=torch.uint8), 300)
    assert collapsed.fid > 0
    assert collapsed.is_mean == pytest.approx(1)
    broken = evaluator.score(lambda k: to_uint8(torch.full((100, 3, 8, 8), torch.nan)), 300)
    assert broken == collapsed  # NaN is black


def test_scores_without_inception_score_and_of_few_images(tmp_path):
    data = classes()
    evaluator = ready("compact", data, tmp_path, want_is=False)
    score = evaluator.score(batches(data.images), 5)
    assert (score.is_mean, score.is_std) == (None, None)
    assert np.isnan(evaluator.score(batches(data.images), 1).fid)
    evaluator.want_is = True
    with pytest.raises(UserError, match=r"5 images to score: .* at least 10"):
        evaluator.score(batches(data.images), 5)


def test_features_that_are_not_finite_are_scored(tmp_path):
    data = classes()
    evaluator = ready("compact", data, tmp_path)
    evaluator.network.head.bias.fill_(torch.nan)
    evaluator.network.body[-2].bias.fill_(torch.inf)
    score = evaluator.score(batches(data.images), 300)
    assert np.isnan([score.fid, score.is_mean, score.is_std]).all()


def test_a_sampler_that_breaks_its_promise_is_told(tmp_path):
    data = classes()
    evaluator = ready("compact", data, tmp_path)
    for wrong in (torch.zeros(100, 3, 8, 8), data.images[:50]):
        with pytest.raises(ValueError, match=r"sample\(0\) gave .*, not 100 of uint8"):
            evaluator.score(lambda k, wrong=wrong: wrong, 300)


def test_reference_is_a_fixed_choice_of_images(tmp_path):
    data, refs = classes(), []
    for folder in ("a", "b"):
        evaluator = ready("compact", data, tmp_path / folder, ref_n=40)
        refs.append(evaluator.reference["mean"])
        assert evaluator.ref == "colours 40"
    assert torch.equal(*refs)
    images = data.images[torch.randperm(300, generator=stream(0, "reference"))[:40]]
    torch.testing.assert_close(refs[0], evaluator.network(images)[0].double().mean(0))
    for ref_n in (-1, 1, 301):
        with pytest.raises(UserError, match=f"--ref-n {ref_n}: colours has 300 images; take 2 to 300"):
            Evaluator("compact", CPU, tmp_path, ref_n=ref_n).use(data)


def test_bad_choices(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--evaluator foo: must be inception or compact"):
        Evaluator("foo", CPU, tmp_path)
    with pytest.raises(UserError, match="--fid-dims 100: must be one of 64, 192, 768, 2048"):
        Evaluator("inception", CPU, tmp_path, fid_dims=100)
    with pytest.raises(UserError, match=r"cache folder .*file: .*; choose another --data-dir"):
        ready("compact", classes(), tmp_path / "file")


def test_cache_is_read_keyed_and_mended(tmp_path):
    def prepare(data: SimpleNamespace, **options: int) -> tuple[Evaluator, str]:
        said = []
        evaluator = ready("compact", data, tmp_path, log=said.append, **options)
        return evaluator, "\n".join(said)

    first, said = prepare(classes())
    assert "training on colours" in said
    assert "reference statistics: colours 300" in said
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    again, said = prepare(classes())
    assert said == ""
    assert again.score(batches(classes().images), 300) == first.score(batches(classes().images), 300)
    _, said = prepare(classes(), ref_n=50)
    assert "reference statistics: colours 50" in said
    assert "training" not in said
    _, said = prepare(classes(digest="two"))
    assert "training on colours" in said
    assert "reference statistics: colours 300" in said
    for file in files:
        file.write_bytes(file.read_bytes()[:1000])
    mended, said = prepare(classes())
    assert said.count("is broken") == 2
    assert mended.score(batches(classes().images), 300) == first.score(batches(classes().images), 300)
    assert prepare(classes())[1] == ""


@pytest.mark.parametrize("calls", [2, 11])  # in the training, in the reference statistics
def test_stopping_leaves_nothing_half_written(tmp_path, calls):
    def check() -> None:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise KeyboardInterrupt

    expected = ["compact"] if calls > 10 else []
    with pytest.raises(KeyboardInterrupt):
        ready("compact", classes(), tmp_path, check=check)
    assert [file.name.split("-")[0] for file in tmp_path.iterdir()] == expected


def score_on_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)  # as in the process that spawns the other: equal to the last bit
    minute = timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", minute, world_size=2, rank=rank)
    evaluator = ready("compact", classes(), folder / "cache", splits=4, batch=64)
    torch.save(vars(evaluator.score(batches(pictures(250, seed=3), 64), 250, rank, 2)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def score_on_rank_1(_: int, folder: Path) -> None:
    score_on_rank(1, folder)


@pytest.mark.slow
def test_two_ranks_score_as_one(tmp_path):
    evaluator = ready("compact", classes(), tmp_path / "cache", splits=4, batch=64)
    alone = evaluator.score(batches(pictures(250, seed=3), 64), 250)
    other = mp.spawn(score_on_rank_1, (tmp_path,), join=False)
    score_on_rank(0, tmp_path)
    other.join()
    ranks = [Score(**torch.load(tmp_path / f"{rank}.pt", weights_only=True)) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    for field in ("fid", "is_mean", "is_std"):
        assert getattr(ranks[0], field) == pytest.approx(getattr(alone, field), rel=1e-6)
