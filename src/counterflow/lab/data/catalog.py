"""What data there is: one entry a set, as plain facts. No data is read, found or downloaded here.

To add a set, add an entry to ``CATALOG``, a function that loads it, and that function to the loaders in
this package's ``__init__``. The checksums of a set of hundreds of files are a file in ``listings``.
"""

from __future__ import annotations

from pathlib import Path

from counterflow.exceptions import InputError
from counterflow.lab.data.entry import DataSet, File, Form

__all__ = ["CATALOG", "dataset", "names"]

_LISTINGS = Path(__file__).parent / "listings"


def _listing(name: str) -> tuple[File, ...]:
    """The files of a set of hundreds: lines ``sha256 size path``."""
    lines = (_LISTINGS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    rows = (line.split(" ", 2) for line in lines)
    return tuple(File(path, sha256, int(size)) for sha256, size, path in rows)


_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_MNIST_CONTENT = "ce3886e150f73eda1adc78acad47da4697dc8b759111ee0b6a878481ea6a4f10"


def _mnist_file(name: str, sha256: str, size: int) -> File:
    return File(f"mnist/{name}", sha256, size, tuple(mirror + name for mirror in _MNIST_MIRRORS))


_ENTRIES = (
    DataSet(
        name="family_relations",
        title="Family relations",
        description="104 questions such as (Colin, aunt) about two isomorphic family trees, and 112 answers",
        splits={"all": 104},
        license="none needed",
        citation=(
            "G. E. Hinton, Learning distributed representations of concepts, "
            "Proc. 8th Annual Conference of the Cognitive Science Society, 1986"
        ),
        publisher="",
        provided="generated",
        forms=(Form("rules", "761e18d2bd9158b48940d799d276a942e9744fe99dd2c4dc173bddcbc50c10be"),),
    ),
    DataSet(
        name="digits",
        title="Handwritten digits",
        description="handwritten digits of 13 writers, 8x8 pixels of 0 to 16",
        splits={"train": 1437, "test": 360},
        license="CC BY 4.0",
        citation="E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998",
        publisher="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        provided="package scikit-learn",
        forms=(
            Form(
                "load_digits",
                "55ae2d9b9b3db79f6ae61342c8724ed6653141881ff7aba531296462a522dbc6",
                differs="only the publisher's test part",
            ),
        ),
    ),
    DataSet(
        name="mnist",
        title="MNIST",
        description="handwritten digits, 28x28 pixels of 0 to 255",
        splits={"train": 60_000, "test": 10_000},
        license="CC BY-SA 3.0 (as commonly stated)",
        citation="Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits, 1998",
        publisher="http://yann.lecun.com/exdb/mnist/",
        provided="files",
        forms=(
            Form(
                "npz",
                _MNIST_CONTENT,
                (
                    File(
                        "mnist/mnist.npz",
                        "06af5dfe73b70e3bc1c36439982b18a8d76803db9b544f6fdf838a37fbb01b64",
                        11_490_519,
                    ),
                ),
            ),
            Form(
                "idx",
                _MNIST_CONTENT,
                (
                    _mnist_file(
                        "train-images-idx3-ubyte.gz",
                        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                        9_912_422,
                    ),
                    _mnist_file(
                        "train-labels-idx1-ubyte.gz",
                        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                        28_881,
                    ),
                    _mnist_file(
                        "t10k-images-idx3-ubyte.gz",
                        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                        1_648_877,
                    ),
                    _mnist_file(
                        "t10k-labels-idx1-ubyte.gz",
                        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                        4_542,
                    ),
                ),
            ),
        ),
    ),
    DataSet(
        name="cifar10",
        title="CIFAR-10",
        description="color pictures in 10 classes, 32x32 pixels",
        splits={"train": 50_000, "test": 10_000},
        license="none stated by its publisher",
        citation="A. Krizhevsky, Learning multiple layers of features from tiny images, 2009",
        publisher="https://www.cs.toronto.edu/~kriz/cifar.html",
        provided="files",
        forms=(
            Form(
                "jpeg",
                "8f7f8d8c3affc28b4b1f5f6f27f03c7fad4cdbd9886602336d89d8913dc3a552",
                (
                    File(
                        "cifar10/train.parquet",
                        "bbb4e0186ea0dfedffa91ffcf6bcc1a66eb371e0650d18e385efb7c235d5f295",
                        47_390_592,
                    ),
                    File(
                        "cifar10/test.parquet",
                        "ee3a7094173813bceef929d04af9e0f609cb42961e00b897dda512af0e416eb5",
                        9_481_764,
                    ),
                ),
                differs="JPEG, which is lossy, and the classes are interleaved",
            ),
            Form(
                "binary",
                "",
                (
                    File(
                        "cifar10/cifar-10-binary.tar.gz",
                        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                        170_052_171,
                        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
                    ),
                ),
            ),
        ),
    ),
    DataSet(
        name="camvid",
        title="CamVid",
        description="street scenes, each pixel one of 11 classes or unlabeled",
        splits={"train": 367, "val": 101, "test": 233},
        license="research use",
        citation=(
            "G. J. Brostow, J. Fauqueur, R. Cipolla, Semantic object classes in video: a high-definition ground "
            "truth database, Pattern Recognition Letters 30, 2009"
        ),
        publisher="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
        provided="files",
        forms=(
            Form(
                "npz",
                "4b60185f5c3357c7d4b0bec7a9a900556d918c9abb731393cefb8f123e796e6c",
                (
                    File(
                        "camvid/train.npz",
                        "d3ee4243ed7344a526198947a681dc93b402628af7d4cc154356039aeabed7e7",
                        15_309_294,
                    ),
                    File(
                        "camvid/val.npz",
                        "7443f70a715c6637101a5ee6962941eeda72b6ebba77d41c72ac50cb598240e8",
                        4_444_895,
                    ),
                    File(
                        "camvid/test.npz",
                        "eabcbf0fddacc66e2f87d302cc6e7bbbf50918c4a1b7d1c679c3c68cf11ed75c",
                        9_651_679,
                    ),
                ),
                differs="shrunk to 160x120 pixels, 32 classes joined to 11",
            ),
            Form(
                "png archives",
                "",
                (File("camvid/701_StillsRaw_full.zip", "", 0), File("camvid/LabeledApproved_full.zip", "", 0)),
                differs="averaged from 960x720 to 160x120 pixels, 32 classes joined to 11",
                source="http://web4.cs.ucl.ac.uk/staff/g.brostow/MotionSegRecData/",
            ),
        ),
    ),
    DataSet(
        name="captions",
        title="Flickr8k captions",
        description="what five people wrote of each of 8,092 photographs; no photographs",
        splits={"train": 6_000, "val": 1_000, "test": 1_000, "none": 92},
        license="research and education",
        citation=(
            "M. Hodosh, P. Young, J. Hockenmaier, Framing image description as a ranking task: data, models and "
            "evaluation metrics, JAIR 47, 2013"
        ),
        publisher="http://hockenmaier.cs.illinois.edu/8k-pictures.html",
        provided="files",
        forms=(
            Form(
                "parquet",
                "81aa93b22f6862132a1751a07d39f3c56e95b485f1dab563fa24788a8ded0ce9",
                (
                    File(
                        "captions/flickr8k_captions.parquet",
                        "a8fd42cd3cffec88fd6ab90f2c91dd464a108993bbb61d2cfff5311924d73c21",
                        735_962,
                    ),
                ),
                differs="text only, no pictures",
            ),
            Form(
                "token files",
                "",
                (File("captions/Flickr8k_text.zip", "", 0),),
                differs="text only, no pictures",
                source="Flickr8k_text.zip of its publisher, on request",
            ),
        ),
    ),
    DataSet(
        name="sentiment",
        title="Multi-domain sentiment",
        description="product reviews in 4 domains, half of them positive; the split is drawn by us",
        splits={"train": 6_400, "test": 1_600},
        license="research use",
        citation=(
            "J. Blitzer, M. Dredze, F. Pereira, Biographies, Bollywood, boom-boxes and blenders: domain "
            "adaptation for sentiment classification, ACL 2007"
        ),
        publisher="https://www.cs.jhu.edu/~mdredze/datasets/sentiment/",
        provided="files",
        forms=(
            Form(
                "parquet",
                "4e407e84a3ed81540817d9cee3a0ae7b8e8214425e1b130ccdbade6dc174ce73",
                (
                    File(
                        "sentiment/reviews.parquet",
                        "81b0cab5d26d89fc303a6525f29fc7e80d8cc0c6d2c29213b07eb709926d8ec9",
                        2_642_601,
                    ),
                ),
                differs="only the 8,000 labeled reviews; characters that are not UTF-8 are replaced",
            ),
            Form(
                "review files",
                "",
                (File("sentiment/domain_sentiment_data.tar.gz", "", 0),),
                differs="only the labeled reviews; characters that are not UTF-8 are replaced",
                source="https://www.cs.jhu.edu/~mdredze/datasets/sentiment/domain_sentiment_data.tar.gz",
            ),
        ),
    ),
    DataSet(
        name="fsdd",
        title="Free Spoken Digit Dataset",
        description="isolated English digits by 6 speakers, 8 kHz; both splits have all speakers",
        splits={"train": 2_700, "test": 300},
        license="CC BY-SA 4.0",
        citation="Z. Jackson et al., Free Spoken Digit Dataset, 2016",
        publisher="https://github.com/Jakobovski/free-spoken-digit-dataset",
        provided="files",
        forms=(
            Form(
                "npz",
                "ed1a8870ee8265b015531e542b0d7ac1b2847a64c016462bde167a3aa24ca195",
                (
                    File(
                        "fsdd/fsdd.npz",
                        "01046f2a77c6217b6098d0dc6e8ab330c9083187355fea407a4c320ba59fa9af",
                        15_426_310,
                    ),
                ),
            ),
            Form(
                "wav archive",
                "",
                (File("fsdd/free-spoken-digit-dataset-1.0.10.tar.gz", "", 0),),
                source="https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz",
            ),
        ),
    ),
    DataSet(
        name="an4",
        title="AN4",
        description="CMU's census speech: spelled names, addresses and commands, no speaker in both splits",
        splits={"train": 818, "test": 130},
        license="Carnegie Mellon University's own, like BSD: any use, with its notice",
        citation="Carnegie Mellon University, The census database (AN4), 1991",
        publisher="http://www.speech.cs.cmu.edu/databases/an4/",
        provided="files",
        forms=(
            Form(
                "npz",
                "b532659bad49890627100c77883f2d471d4ce0d9ddcc8cb978327e551949d55f",
                (
                    File(
                        "an4/features.npz",
                        "75692a89336798579b49649676b4db468783e4c9ff3f06e20d7d5518c059c796",
                        12_149_027,
                    ),
                    File(
                        "an4/audio_subset.npz",
                        "e8e844e1165705f0aca82c7cd84ba84ec17d84acf34441ffd9c90cf9bcd81c74",
                        2_420_271,
                    ),
                    File(
                        "an4/an4.dic",
                        "fc9bdde3129339f4cb7c0f8938e2dc569b640155cad994c8aab032b25fcccd5d",
                        4_145,
                    ),
                    File("an4/an4.phone", "30955489c2cc1c954a611fb2edae424ab9e968647bd744b9ab6535e7c7065db1", 87),
                ),
                differs=(
                    "13 mel cepstra, 100 frames a second, and audio of 63 utterances only; "
                    "without 130 utterances of 10 training speakers"
                ),
            ),
            Form(
                "raw archive",
                "",
                (File("an4/an4_raw.bigendian.tar.gz", "", 0),),
                source="http://www.speech.cs.cmu.edu/databases/an4/an4_raw.bigendian.tar.gz",
            ),
            Form(
                "sphere archive",
                "",
                (File("an4/an4_sphere.tar.gz", "", 0),),
                source="http://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz",
            ),
        ),
    ),
    DataSet(
        name="emodb",
        title="Berlin emotional speech",
        description="10 German sentences in 7 emotions, 16 kHz, phone labels; the split by speaker is drawn by us",
        splits={"train": 336, "test": 118},
        license="free to use with citation",
        citation=(
            "F. Burkhardt, A. Paeschke, M. Rolfes, W. Sendlmeier, B. Weiss, A database of German emotional "
            "speech, Interspeech 2005"
        ),
        publisher="http://emodb.bilderbar.info/",
        provided="files",
        forms=(
            Form(
                "flac",
                "6681ae29b4f1cb7e1dfe860815414e9881ee867b18f11f548e0453007e49dc14",
                _listing("emodb"),
                differs="cut at 2.0 s (123 of 454 utterances are whole), 8 of the 10 speakers",
            ),
            Form(
                "wav archive",
                "",
                (File("emodb/download.zip", "", 0),),
                source="http://emodb.bilderbar.info/download/download.zip",
            ),
        ),
    ),
    DataSet(
        name="prompts",
        title="Telephone prompts",
        description="phrases by one professional speaker, 8 kHz, with pronunciations; the split is drawn by us",
        splits={"train": 398, "test": 100},
        license="CC BY-SA 3.0; the pronunciations (CMUdict): BSD",
        citation="Asterisk core sounds, voice: Allison Smith; The CMU Pronouncing Dictionary",
        publisher="https://downloads.asterisk.org/pub/telephony/sounds/",
        provided="files",
        forms=(
            Form(
                "flac",
                "5d8252a0b4f59617ecba51073100d828c505fb26df4793f3f69aa603e05addd2",
                _listing("prompts"),
                differs="words are capitals without punctuation, digits spelled; 472 of 498 are in the lexicon",
            ),
            Form(
                "wav archive",
                "",
                (File("prompts/asterisk-core-sounds-en-wav-1.6.1.tar.gz", "", 0),),
                differs="words are capitals without punctuation, digits spelled; no lexicon",
                source=(
                    "https://downloads.asterisk.org/pub/telephony/sounds/releases/"
                    "asterisk-core-sounds-en-wav-1.6.1.tar.gz"
                ),
            ),
        ),
    ),
    DataSet(
        name="noise",
        title="Noises",
        description="ten noises of 18 to 60 seconds, 16 kHz; the split is drawn by us",
        splits={"train": 7, "test": 3},
        license=(
            "running_tap, doing_the_dishes: CC BY 4.0; the others: none stated by the collections "
            "in which they circulate, research only"
        ),
        citation=(
            "A. Varga, H. J. M. Steeneken, Assessment for automatic speech recognition: II. NOISEX-92, Speech "
            "Communication 12, 1993; P. Warden, Speech Commands, arXiv:1804.03209, 2018"
        ),
        publisher="https://www.tensorflow.org/datasets/catalog/speech_commands",
        provided="files",
        forms=(
            Form(
                "flac",
                "4142cc4b09016b603e4320aee737ee91c33e1e17dd13385531005b27a183e1d8",
                (
                    File(
                        "noise/babble.flac", "c9001c627d6fb98dc750591a22fcfc2111e4577ad0dc3d974b06e468ece8ffc4", 368_200
                    ),
                    File("noise/car.flac", "02ab7380476aae5e8406552b0ead4035b5ecd187ad85772fcbfc6fbdcb44b77f", 469_494),
                    File(
                        "noise/crowd.flac", "c7497fc476e5803cda8816ec1137241ef7a59c37e739711954c88dfbd5f5699a", 995_731
                    ),
                    File(
                        "noise/doing_the_dishes.flac",
                        "9b2455d750bd90ac724d1d0d7e84501f705c175c48557bf182e919d4562fecff",
                        976_846,
                    ),
                    File(
                        "noise/engine.flac",
                        "b4708fa5d5fedbf729501b81605b5b4fe87bc012b181fb7519b90f8b31ca5c79",
                        1_664_690,
                    ),
                    File(
                        "noise/leopard.flac",
                        "7db3f896c613c99265bca7d602d8c36636f33618a03b84c14c56115eae1677a6",
                        924_716,
                    ),
                    File(
                        "noise/machine.flac",
                        "cc803a61a37dbcfd80fc62befe09019dbf72248ba9c866b4ebd365a7227692a9",
                        591_557,
                    ),
                    File(
                        "noise/machinegun.flac",
                        "f7ec10ce82c50625491b2ba8f1145f1dbc021d67e0dc54f43ee024134cdd1fb7",
                        794_705,
                    ),
                    File(
                        "noise/running_tap.flac",
                        "fff6179e7e5b642dbda3c38a7dcbed407551d52f50a87de3456893caef408f8a",
                        968_241,
                    ),
                    File(
                        "noise/street.flac", "c4d1ea61538440b5f7c5a739f906cf7ef10e59131cac5cf527e0fa530f34c7a8", 822_444
                    ),
                ),
                differs="resampled to 16 kHz where needed, levels as found; NOISEX-92 has no publisher any more",
            ),
            Form(
                "speech commands",
                "",
                (
                    File(
                        "noise/speech_commands_v0.02.tar.gz",
                        "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
                        2_428_923_189,
                    ),
                ),
                differs="only running_tap and doing_the_dishes: the other eight have no publisher any more",
                source="http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz (2.4 GB)",
            ),
        ),
    ),
)

CATALOG: dict[str, DataSet] = {entry.name: entry for entry in _ENTRIES}
"""Every set that can be loaded, by its name."""


def names() -> tuple[str, ...]:
    """The names of all sets, in the catalog's order.

    Example:
        >>> names()
        ('family_relations', 'digits', 'mnist', 'cifar10', 'camvid', 'captions', 'sentiment', 'fsdd', 'an4',
        'emodb', 'prompts', 'noise')
    """
    return tuple(CATALOG)


def dataset(name: str) -> DataSet:
    """The catalog's entry for a set.

    Args:
        name: Its name.

    Raises:
        InputError: There is no such set.

    Example:
        >>> dataset("mnist").splits
        {'train': 60000, 'test': 10000}
    """
    try:
        return CATALOG[name]
    except KeyError:
        raise InputError(f"no data set is called {name!r}: there are {', '.join(CATALOG)}") from None
