"""One node of a parameter server over TCP: what `byzflow node` does, under the name and flags of ByzPy's script.

python ps_node.py --config nodes.yaml --role server
python ps_node.py --config nodes.yaml --role worker --worker-id 0
"""

import sys

from byzflow.cli.node import command
from byzflow.errors import ByzflowError

if __name__ == "__main__":
    try:
        command()
    except ByzflowError as error:
        print(f"ps_node.py: {error}", file=sys.stderr)
        sys.exit(2)
