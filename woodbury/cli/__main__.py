"""python -m woodbury.cli"""

from woodbury.cli import main

main()
