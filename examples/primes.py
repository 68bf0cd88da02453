"""Prints the primes below LIMIT (default: 50), one per line. Usage: primes.py [LIMIT]"""

import sys


def primes(limit: int) -> list[int]:
    sieve = bytearray([1]) * max(limit, 2)
    sieve[:2] = b"\0\0"
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, len(sieve), number)))
    return [number for number, is_prime in enumerate(sieve) if is_prime]


if __name__ == "__main__":
    for prime in primes(int(sys.argv[1]) if len(sys.argv) > 1 else 50):
        print(prime)  # noqa: T201
