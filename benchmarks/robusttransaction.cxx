// libpqxx's robusttransaction under pqxx::perform(), for lost_commit.py: one call for each line.
// The first argument is the connection string; answers are those of _contestants.py.

#include <iostream>
#include <string>

#include <pqxx/pqxx>

int main(int argc, char **argv)
{
  if (argc != 2)
    return 2;
  std::string const where{argv[1]};
  std::cout << "ready" << std::endl;
  for (std::string line; std::getline(std::cin, line);)
  {
    try
    {
      pqxx::perform(
        [&where] {
          pqxx::connection connection{where};
          pqxx::robusttransaction<> transaction{connection};
          transaction.exec("UPDATE counter SET n = n + 1");
          transaction.commit();
        },
        5);
      std::cout << "done" << std::endl;
    }
    catch (pqxx::in_doubt_error const &)
    {
      std::cout << "unknown" << std::endl;
    }
    catch (std::exception const &error)
    {
      std::string const text{error.what()};
      std::cout << "failed " << text.substr(0, text.find('\n')) << std::endl;
    }
  }
}
