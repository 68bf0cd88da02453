// Prints the primes below LIMIT (default: 50), one per line. Usage: Primes [LIMIT]
#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

int main(int argc, char* argv[])
{
    const long limit = argc > 1 ? std::stol(argv[1]) : 50;
    std::vector<long> primes;

    for (long number = 2; number < limit; ++number) {
        const auto divides = [number](long prime) { return number % prime == 0; };
        if (std::none_of(primes.begin(), primes.end(), divides)) {
            primes.push_back(number);
            std::cout << number << '\n';
        }
    }
}
