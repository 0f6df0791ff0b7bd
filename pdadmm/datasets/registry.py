"""What is known of every data set: where it is published, its checksums, licence, split and citation."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputError
from ..files import Record

__all__ = ["PLANETOID_PARTS", "REGISTRY", "SPLITS", "Archive", "Dataset", "RawFile", "dataset"]

#: names of the parts into which a data set's nodes are split, in the order of files
SPLITS = ("train", "val", "test")
#: endings of a Planetoid set's files
PLANETOID_PARTS = ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index")


@dataclass(frozen=True)
class RawFile:
    """A published file.

    Attributes
    ----------
    name : str
        Path inside the raw folder, under the name it was published with.
    url : str
        Where it is downloaded from; empty when it comes in an `Archive`.
    sha256 : tuple of str
        Every accepted checksum; empty when none is known and nothing is checked.
    url_known : bool
        Whether one of the checksums is of what `url` serves. Otherwise a download's own checksum
        is recorded beside it and checked from then on.
    """

    name: str
    url: str = ""
    sha256: tuple[str, ...] = ()
    url_known: bool = True


@dataclass(frozen=True)
class Archive:
    """A zip that holds all files of a set under the folder `prefix`."""

    url: str
    sha256: tuple[str, ...]
    prefix: str


@dataclass(frozen=True)
class Dataset:
    """A data set by its NAME.

    Attributes
    ----------
    name, title, licence, citation : str
    format : str
        Which reader: planetoid, gnn-benchmark, ogb, graphsaint, mnist, synthetic.
    file_sets : tuple of tuples of RawFile
        Alternatives; the first of which all files are there is read, the first is downloaded.
    nodes, features, classes : int
        As published, to know a file of the data set's by; readers take the sizes from the files.
    split : str
        The rule, in words.
    archive : Archive or None
        Where the first file set is downloaded from, when it is not file by file.
    folders : tuple of str
        Subfolders of --raw in which the files may also lie.
    preset : dict
        Options of network and training for this data set, by name; weaker than what the user gives.
    operators : str
        Default of --operators of pdadmm.prepare.
    operator_norm : {"none", "row"}
        Default of its --feature-norm with these operators.
    operator_preset : dict
        What takes the place of options of `preset` on features of these operators.
    """

    name: str
    title: str
    format: str
    file_sets: tuple[tuple[RawFile, ...], ...]
    nodes: int
    features: int
    classes: int
    split: str
    licence: str
    citation: str
    archive: Archive | None = None
    folders: tuple[str, ...] = ()
    preset: Record = field(default_factory=dict)
    operators: str = "powers:4"
    operator_norm: str = "none"
    operator_preset: Record = field(default_factory=dict)

    def norm_for(self, operators: str) -> str:
        """Feature norm that goes with these operators."""
        return self.operator_norm if operators == self.operators else "none"

    def preset_for(self, operators: str) -> Record:
        """Options for training on features of these operators."""
        own = self.operator_preset if operators == self.operators else {}
        return {**self.preset, **own}


_PUBLIC = "public: 20 training nodes a class, 500 validation, 1000 test"
_DRAWN = "drawn from the seed: 20 training nodes a class, 1000 validation, 1000 test"

_YANG = (
    "Z. Yang, W. Cohen, R. Salakhutdinov: Revisiting semi-supervised learning with graph embeddings, "
    "ICML 2016"
)
_SHCHUR = (
    "O. Shchur, M. Mumme, A. Bojchevski, S. Günnemann: Pitfalls of graph neural network evaluation, "
    "arXiv 1811.05868, 2018"
)
_ZENG = (
    "H. Zeng, H. Zhou, A. Srivastava, R. Kannan, V. Prasanna: GraphSAINT: graph sampling based inductive "
    "learning method, ICLR 2020"
)
_HU = "W. Hu et al.: Open Graph Benchmark: datasets for machine learning on graphs, NeurIPS 2020"
_LECUN = (
    "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition, "
    "1998"
)
_DESHPANDE = "Y. Deshpande, S. Sen, A. Montanari, E. Mossel: Contextual stochastic block models, NeurIPS 2018"

# Checksums in the order of PLANETOID_PARTS: x y tx ty allx ally graph test.index.
_PLANETOID_SHA256 = {
    "cora": (
        "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
        "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
        "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
        "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
        "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
        "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
        "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
        "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    ),
    "citeseer": (
        "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
        "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
        "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
        "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
        "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
        "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
        "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
        "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    ),
    "pubmed": (
        "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33",
        "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3",
        "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
        "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
        "508e538e2abdccdd54c4d3e9f49d638b4af7107d85845f66ddea5a5152658b7e",
        "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
        "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
        "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5",
    ),
}


# How they were chosen: docs/results.md, "How the presets were chosen".
_PRESETS: dict[str, Record] = {
    "cora": {"input_norm": "hellinger", "mu": 0.003},
    "citeseer": {"nu": 0.003},
    "amazon-computers": {"input_norm": "hellinger", "mu": 0.0003},
    "amazon-photo": {"input_norm": "hellinger", "mu": 0.0003},
    "coauthor-cs": {"input_norm": "hellinger", "hop_decay": 0.65, "mu": 0.001},
    "coauthor-physics": {"input_norm": "hellinger", "hop_decay": 0.8, "mu": 0.001},
    "mnist": {
        "solver": "exact", "nu": 1e-4, "rho": 3e-4, "mu": 0.001,
        "damping": 0.5, "momentum": 0.95, "z_centre": "linear",
    },
}  # fmt: skip

# Operators, the feature norm before them, and what of the presets above is different on them:
# docs/results.md, "How the operators were chosen" and "Label shift".
_OPERATORS: dict[str, tuple[str, str, Record]] = {
    "cora": ("ppr:0.4,ppr:0.1", "none", {"hop_decay": 1.5, "class_prior": "val"}),
    "citeseer": ("ppr:0.1", "none", {"class_prior": "val"}),
    "amazon-computers": ("ppr:0.4,ppr:0.1", "none", {"mu": 3e-5, "class_prior": "val"}),
    "amazon-photo": ("ppr:0.2:rw", "row", {"mu": 3e-5, "class_prior": "val"}),
    "coauthor-cs": ("x,ppr:0.4", "row", {"hop_decay": 1.5, "mu": 0.003}),
    "coauthor-physics": ("x,ppr:0.2", "row", {"hop_decay": 2.0}),
}


def _own_operators(name: str) -> Record:
    """Fields of an entry."""
    operators, norm, preset = _OPERATORS.get(name, ("powers:4", "none", {}))
    return {"operators": operators, "operator_norm": norm, "operator_preset": preset}


def _planetoid(name: str, title: str, nodes: int, features: int, classes: int) -> Dataset:
    base = "https://raw.githubusercontent.com/kimiyoung/planetoid/master/data/"
    files = tuple(
        RawFile(f"ind.{name}.{part}", f"{base}ind.{name}.{part}", (sha256,))
        for part, sha256 in zip(PLANETOID_PARTS, _PLANETOID_SHA256[name], strict=True)
    )
    return Dataset(
        name, title, "planetoid", (files,), nodes, features, classes, _PUBLIC, "MIT", _YANG,
        folders=("planetoid",), preset=_PRESETS.get(name, {}), **_own_operators(name),
    )  # fmt: skip


def _gnn_benchmark(
    name: str, title: str, file: str, sha256: str, nodes: int, features: int, classes: int
) -> Dataset:
    # The checksum is of the undirected graph re-saved without pickles (EdisonLeeeee/GraphData);
    # the original has the same nodes and edges and is what is downloaded.
    url = f"https://github.com/shchur/gnn-benchmark/raw/master/data/npz/{file}"
    files = (RawFile(file, url, (sha256,), url_known=False),)
    return Dataset(
        name, title, "gnn-benchmark", (files,), nodes, features, classes, _DRAWN, "MIT", _SHCHUR,
        folders=("npz",), preset=_PRESETS[name], **_own_operators(name),
    )  # fmt: skip


_MNIST_NPZ = RawFile(
    "mnist.npz",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
    (
        "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
        "6ff3272174ad1dcb2ce270847ad63698633925ed0249e1e856d6fd92a3fbd58e",
    ),
)
_MNIST_IDX = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_MNIST_IDX_GZ = tuple(
    RawFile(f"{name}.gz", f"https://storage.googleapis.com/cvdf-datasets/mnist/{name}.gz", (sha256,))
    for name, sha256 in _MNIST_IDX.items()
)

_DRIVE = "https://drive.usercontent.google.com/download?id={}&confirm=t"
_FLICKR = {
    "adj_full.npz": "1crmsTbd1-2sEXsGwa2IKnIB7Zd3TmUsy",
    "feats.npy": "1join-XdvX3anJU_MLVtick7MgeAQiWIZ",
    "class_map.json": "1uxIkbtg5drHTsKt-PAsZZ4_yJmgFmle9",
    "role.json": "1htXCtuktuCW8TR8KiKfrFDAxUgekQoV7",
}

_ENTRIES = (
    Dataset(
        "synthetic", "Contextual stochastic block model", "synthetic", (), 2700, 500, 7, _DRAWN,
        "generated", _DESHPANDE,
    ),
    _planetoid("cora", "Cora citation graph", 2708, 1433, 7),
    _planetoid("citeseer", "Citeseer citation graph", 3327, 3703, 6),
    _planetoid("pubmed", "Pubmed diabetes citation graph", 19717, 500, 3),
    _gnn_benchmark(
        "amazon-computers", "Amazon Computers co-purchase graph", "amazon_electronics_computers.npz",
        "86ae8675ce402ae0cb21f61ea6db2f0bf12db528002302003e9769fd5163d03f", 13752, 767, 10,
    ),
    _gnn_benchmark(
        "amazon-photo", "Amazon Photo co-purchase graph", "amazon_electronics_photo.npz",
        "6db0923cb0ff1ae10711566bd0d2ad4291e3bb79c75befcfbddd930a6f89cdae", 7650, 745, 8,
    ),
    _gnn_benchmark(
        "coauthor-cs", "Coauthor CS co-authorship graph", "ms_academic_cs.npz",
        "5f403384f5dae39518af91f6f2043e6c3a18c36d0adfb6888f7f1918d23d6f2e", 18333, 6805, 15,
    ),
    _gnn_benchmark(
        "coauthor-physics", "Coauthor Physics co-authorship graph", "ms_academic_phy.npz",
        "1534c12b05f50498d22d49322220640bd96b768522b3054fc4c86c3384a130f0", 34493, 8415, 5,
    ),
    Dataset(
        "flickr", "Flickr image graph (GraphSAINT)", "graphsaint",
        (tuple(RawFile(name, _DRIVE.format(key), (), False) for name, key in _FLICKR.items()),),
        89250, 500, 7, "public: 44625 training, 22312 validation, 22313 test nodes", "MIT", _ZENG,
        folders=("flickr/raw", "raw"),
    ),
    Dataset(
        "ogbn-arxiv", "arXiv citation graph (OGB)", "ogb",
        (
            tuple(
                RawFile(f"{part}.csv.gz")
                for part in (
                    "raw/edge", "raw/node-feat", "raw/node-label",
                    "split/time/train", "split/time/valid", "split/time/test",
                )
            ),
        ),
        169343, 128, 40, "public, by year: 90941 training, 29799 validation, 48603 test nodes",
        "ODC-BY 1.0", _HU,
        archive=Archive(
            "https://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip",
            ("49f85c801589ecdcc52cfaca99693aaea7b8af16a9ac3f41dd85a5f3193fe276",),
            "arxiv",
        ),
        folders=("arxiv", "ogbn_arxiv"),
    ),
    Dataset(
        "mnist", "MNIST handwritten digits (no graph)", "mnist",
        (
            (_MNIST_NPZ,),
            _MNIST_IDX_GZ,
            tuple(RawFile(name) for name in _MNIST_IDX),
        ),
        70000, 784, 10,
        "public test images (10000); 5000 validation images drawn from the seed out of the 60000 others",
        "CC BY-SA 3.0", _LECUN,
        folders=("npz", "MNIST/raw"), preset=_PRESETS["mnist"],
    ),
)  # fmt: skip

REGISTRY: dict[str, Dataset] = {entry.name: entry for entry in _ENTRIES}


def dataset(name: str) -> Dataset:
    """The registry's entry of that name.

    Raises
    ------
    InputError
        When there is none; the message lists the names.
    """
    try:
        return REGISTRY[name]
    except KeyError:
        raise InputError(
            f"unknown data set {name!r}; known are {', '.join(REGISTRY)}, or give a .npz file"
        ) from None
